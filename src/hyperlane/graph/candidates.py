"""The end of a last stage's graph: candidates of the wanted tokens instead of their logits.

The log-sum-exp is taken from a softmax, as the top logit less the logarithm of its probability: ONNX Runtime's
Softmax is over ten times faster on CPU than its ReduceLogSumExp.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from hyperlane.core import ModelFacts
from hyperlane.graph import names
from hyperlane.graph.builder import GraphBuilder

PATH = "candidates"


def add(graph: GraphBuilder, projected: str, facts: ModelFacts) -> None:
    """Add the candidate outputs; `projected` is float32 [1, wanted, vocab]."""
    graph.input(names.INVERSE_TEMPERATURE, TensorProto.FLOAT, ["wanted", 1])
    graph.input(names.TOP_K, TensorProto.INT64, [1])
    graph.input(names.EXTRA, TensorProto.INT64, ["extra"])

    table = graph.constant(f"{PATH}/table", np.array([-1, facts.vocab], np.int64))
    logits = graph.node("Reshape", [_capped(graph, projected, facts.logit_softcap), table], names.LOGITS)
    top_ids = f"{PATH}/top_ids"
    graph.node("TopK", [logits, names.TOP_K], f"{PATH}/top", outputs=[names.TOP_LOGITS, top_ids], axis=-1)
    graph.node("Cast", [top_ids], names.TOP_IDS, to=TensorProto.INT32)
    flat = graph.node("Reshape", [logits, graph.constant(f"{PATH}/flat", np.array([-1], np.int64))], f"{PATH}/all")
    graph.node("Gather", [flat, names.EXTRA], names.EXTRA_LOGITS, axis=0)

    top = graph.node("Slice", [names.TOP_LOGITS, *_first_column(graph)], f"{PATH}/top_logit")
    best = graph.node("Slice", [top_ids, *_first_column(graph)], f"{PATH}/top_id")
    _log_sum_exp(graph, logits, top, best, names.LSE)
    scaled = graph.node("Mul", [logits, names.INVERSE_TEMPERATURE], f"{PATH}/tempered")
    scaled_top = graph.node("Mul", [top, names.INVERSE_TEMPERATURE], f"{PATH}/tempered_top")
    _log_sum_exp(graph, scaled, scaled_top, best, names.LSE_T)

    graph.output(names.LOGITS, TensorProto.FLOAT, ["wanted", facts.vocab])
    graph.output(names.TOP_LOGITS, TensorProto.FLOAT, ["wanted", "top_k"])
    graph.output(names.TOP_IDS, TensorProto.INT32, ["wanted", "top_k"])
    graph.output(names.LSE, TensorProto.FLOAT, ["wanted", 1])
    graph.output(names.LSE_T, TensorProto.FLOAT, ["wanted", 1])
    graph.output(names.EXTRA_LOGITS, TensorProto.FLOAT, ["extra"])


def _capped(graph: GraphBuilder, logits: str, softcap: float) -> str:
    """Cap · tanh(logits / cap), where the model has a cap."""
    if not softcap:
        return logits
    cap = graph.constant(f"{PATH}/softcap", np.array(softcap, np.float32))
    ratio = graph.node("Div", [logits, cap], f"{PATH}/softcap_ratio")
    return graph.node("Mul", [graph.node("Tanh", [ratio], f"{PATH}/softcap_tanh"), cap], f"{PATH}/softcapped")


def _first_column(graph: GraphBuilder) -> tuple[str, str, str]:
    zero, one = (graph.constant(f"{PATH}/{name}", np.array([i], np.int64)) for i, name in enumerate(("zero", "one")))
    return zero, one, one


def _log_sum_exp(graph: GraphBuilder, logits: str, top: str, top_id: str, name: str) -> None:
    shares = graph.node("Softmax", [logits], f"{name}/shares", axis=-1)
    share = graph.node("GatherElements", [shares, top_id], f"{name}/top_share", axis=1)
    graph.node("Sub", [top, graph.node("Log", [share], f"{name}/log_share")], name)
