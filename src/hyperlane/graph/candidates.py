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


MIN_PART, MAX_PARTS = 1024, 64


def parts_of(vocab: int) -> int:
    """Into how many equal parts a GPU takes a vocabulary apart to find the largest logits; 1 where it cannot."""
    fitting = (parts for parts in range(MAX_PARTS, 1, -1) if vocab % parts == 0 and vocab // parts >= MIN_PART)
    return next(fitting, 1)


def add(graph: GraphBuilder, projected: str, facts: ModelFacts, parts: int = 1) -> None:
    """Add the candidate outputs; `projected` is float32 [1, wanted, vocab].

    `parts`: how many parts of the vocabulary are searched side by side, each for as many as can come from it
    (`names.PART_K`): CUDA's TopK and Softmax take a row in one block of threads.
    """
    graph.input(names.INVERSE_TEMPERATURE, TensorProto.FLOAT, ["wanted", 1])
    graph.input(names.TOP_K, TensorProto.INT64, [1])
    graph.input(names.EXTRA, TensorProto.INT64, ["extra"])

    table = graph.constant(f"{PATH}/table", np.array([-1, facts.vocab], np.int64))
    logits = graph.node("Reshape", [_capped(graph, projected, facts.logit_softcap), table], names.LOGITS)
    top_ids = _top(graph, logits) if parts == 1 else _top_of_parts(graph, logits, facts.vocab, parts)
    graph.node("Cast", [top_ids], names.TOP_IDS, to=TensorProto.INT32)
    flat = graph.node("Reshape", [logits, graph.constant(f"{PATH}/flat", np.array([-1], np.int64))], f"{PATH}/all")
    graph.node("Gather", [flat, names.EXTRA], names.EXTRA_LOGITS, axis=0)

    top = graph.node("Slice", [names.TOP_LOGITS, *_first_column(graph)], f"{PATH}/top_logit")
    best = graph.node("Slice", [top_ids, *_first_column(graph)], f"{PATH}/top_id")
    log_sum_exp = _log_sum_exp if parts == 1 else _log_of_sum
    log_sum_exp(graph, logits, top, best, names.LSE)
    scaled = graph.node("Mul", [logits, names.INVERSE_TEMPERATURE], f"{PATH}/tempered")
    scaled_top = graph.node("Mul", [top, names.INVERSE_TEMPERATURE], f"{PATH}/tempered_top")
    log_sum_exp(graph, scaled, scaled_top, best, names.LSE_T)

    graph.output(names.LOGITS, TensorProto.FLOAT, ["wanted", facts.vocab])
    graph.output(names.TOP_LOGITS, TensorProto.FLOAT, ["wanted", "top_k"])
    graph.output(names.TOP_IDS, TensorProto.INT32, ["wanted", "top_k"])
    graph.output(names.LSE, TensorProto.FLOAT, ["wanted", 1])
    graph.output(names.LSE_T, TensorProto.FLOAT, ["wanted", 1])
    graph.output(names.EXTRA_LOGITS, TensorProto.FLOAT, ["extra"])


def _top(graph: GraphBuilder, logits: str) -> str:
    top_ids = f"{PATH}/top_ids"
    graph.node("TopK", [logits, names.TOP_K], f"{PATH}/top", outputs=[names.TOP_LOGITS, top_ids], axis=-1)
    return top_ids


def _top_of_parts(graph: GraphBuilder, logits: str, vocab: int, parts: int) -> str:
    """The largest of each part, and of those the largest."""
    graph.input(names.PART_K, TensorProto.INT64, [1])
    size, ids = vocab // parts, f"{PATH}/part_ids"
    by_part = graph.constant(f"{PATH}/by_part", np.array([-1, parts, size], np.int64))
    joined = graph.constant(f"{PATH}/joined", np.array([0, -1], np.int64))
    split = graph.node("Reshape", [logits, by_part], f"{PATH}/parts")
    found = f"{PATH}/part_logits"
    graph.node("TopK", [split, names.PART_K], f"{PATH}/part_top", outputs=[found, ids], axis=-1)
    begins = graph.constant(f"{PATH}/begins", (np.arange(parts, dtype=np.int64) * size).reshape(1, parts, 1))
    all_ids = graph.node("Add", [ids, begins], f"{PATH}/all_ids")
    some = graph.node("Reshape", [found, joined], f"{PATH}/some")
    places = f"{PATH}/places"
    graph.node("TopK", [some, names.TOP_K], f"{PATH}/top", outputs=[names.TOP_LOGITS, places], axis=-1)
    some_ids = graph.node("Reshape", [all_ids, joined], f"{PATH}/some_ids")
    return graph.node("GatherElements", [some_ids, places], f"{PATH}/top_ids", axis=1)


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


def _log_of_sum(graph: GraphBuilder, logits: str, top: str, _top_id: str, name: str) -> None:
    """As it is written; on CUDA, whose Softmax takes a row in one block of threads, a tenth of the time."""
    powers = graph.node("Exp", [graph.node("Sub", [logits, top], f"{name}/below_top")], f"{name}/powers")
    axis = graph.constant(f"{PATH}/last_axis", np.array([-1], np.int64))
    total = graph.node("ReduceSum", [powers, axis], f"{name}/total", keepdims=1)
    graph.node("Add", [top, graph.node("Log", [total], f"{name}/log_total")], name)
