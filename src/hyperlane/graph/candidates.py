"""The end of a last stage's graph: candidates of the wanted tokens instead of their logits.

The log-sum-exp is taken from a softmax, as the top logit less the logarithm of its probability: ONNX Runtime's
Softmax is over ten times faster on CPU than its ReduceLogSumExp.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def add(graph: GraphBuilder, projected: str, facts: ModelFacts, parts: int = 1, *, half: bool = False) -> None:
    """Add the candidate outputs; `projected` is float32, float16 if it is `half`: [1, wanted, vocab].

    `parts`: how many parts of the vocabulary are searched side by side, each for as many as can come from it
    (`names.PART_K`): CUDA's TopK and Softmax take a row in one block of threads.
    """
    graph.input(names.INVERSE_TEMPERATURE, TensorProto.FLOAT, ["wanted", 1])
    graph.input(names.TOP_K, TensorProto.INT64, [1])
    graph.input(names.EXTRA, TensorProto.INT64, ["extra"])

    table = graph.constant(f"{PATH}/table", np.array([-1, facts.vocab], np.int64))
    end = _End(graph, facts.logit_softcap, half=half)
    bare = graph.node("Reshape", [projected, table], end.bare(names.LOGITS))
    end.finish(names.LOGITS)
    if parts == 1:
        top_ids = _top(graph)
        _log_sums(graph, top_ids)
    else:
        top_ids = _top_of_parts(end, bare, facts.vocab, parts)
        _log_sums_as_written(graph)
    graph.node("Cast", [top_ids], names.TOP_IDS, to=TensorProto.INT32)
    flat = graph.node(
        "Reshape", [names.LOGITS, graph.constant(f"{PATH}/flat", np.array([-1], np.int64))], f"{PATH}/all"
    )
    graph.node("Gather", [flat, names.EXTRA], names.EXTRA_LOGITS, axis=0)

    graph.output(names.LOGITS, TensorProto.FLOAT, ["wanted", facts.vocab])
    graph.output(names.TOP_LOGITS, TensorProto.FLOAT, ["wanted", "top_k"])
    graph.output(names.TOP_IDS, TensorProto.INT32, ["wanted", "top_k"])
    graph.output(names.LSE, TensorProto.FLOAT, ["wanted", 1])
    graph.output(names.LSE_T, TensorProto.FLOAT, ["wanted", 1])
    graph.output(names.EXTRA_LOGITS, TensorProto.FLOAT, ["extra"])


def _top(graph: GraphBuilder) -> str:
    top_ids = f"{PATH}/top_ids"
    outputs = [names.TOP_LOGITS, top_ids]
    graph.node("TopK", [names.LOGITS, names.TOP_K], f"{PATH}/top", outputs=outputs, axis=-1)
    return top_ids


@dataclass(frozen=True, slots=True)
class _End:
    """How projected values become logits: float32, capped where the model has a cap."""

    graph: GraphBuilder
    softcap: float
    half: bool

    def bare(self, name: str) -> str:
        """What the values are called that become the logits `name`: so itself, where there is nothing to do."""
        return f"{PATH}/{name}/bare" if self.half or self.softcap else name

    def finish(self, name: str) -> None:
        """Make the logits `name` of their bare values."""
        graph, x, path = self.graph, self.bare(name), f"{PATH}/{name}"
        if self.half:
            x = graph.node("Cast", [x], f"{path}/single" if self.softcap else name, to=TensorProto.FLOAT)
        if self.softcap:
            cap = graph.constant(f"{PATH}/softcap", np.array(self.softcap, np.float32))
            ratio = graph.node("Div", [x, cap], f"{path}/ratio")
            graph.node("Mul", [graph.node("Tanh", [ratio], f"{path}/tanh"), cap], name)


def _top_of_parts(end: _End, bare: str, vocab: int, parts: int) -> str:
    """The largest of each part, and of those the largest.

    Searched as they were projected: CUDA's TopK takes time by the bytes of a value, and a cap changes no order.
    """
    graph = end.graph
    graph.input(names.PART_K, TensorProto.INT64, [1])
    size, ids = vocab // parts, f"{PATH}/part_ids"
    by_part = graph.constant(f"{PATH}/by_part", np.array([-1, parts, size], np.int64))
    joined = graph.constant(f"{PATH}/joined", np.array([0, -1], np.int64))
    split = graph.node("Reshape", [bare, by_part], f"{PATH}/parts")
    found = f"{PATH}/part_logits"
    graph.node("TopK", [split, names.PART_K], f"{PATH}/part_top", outputs=[found, ids], axis=-1)
    begins = graph.constant(f"{PATH}/begins", (np.arange(parts, dtype=np.int64) * size).reshape(1, parts, 1))
    all_ids = graph.node("Add", [ids, begins], f"{PATH}/all_ids")
    some = graph.node("Reshape", [found, joined], f"{PATH}/some")
    places = f"{PATH}/places"
    outputs = [end.bare(names.TOP_LOGITS), places]
    graph.node("TopK", [some, names.TOP_K], f"{PATH}/top", outputs=outputs, axis=-1)
    end.finish(names.TOP_LOGITS)
    some_ids = graph.node("Reshape", [all_ids, joined], f"{PATH}/some_ids")
    return graph.node("GatherElements", [some_ids, places], f"{PATH}/top_ids", axis=1)


def _first_column(graph: GraphBuilder, x: str, name: str) -> str:
    zero, one = (graph.constant(f"{PATH}/{name}", np.array([i], np.int64)) for i, name in enumerate(("zero", "one")))
    return graph.node("Slice", [x, zero, one, one], f"{PATH}/{name}")


def _log_sums(graph: GraphBuilder, top_ids: str) -> None:
    """Log-sum-exp of the logits, and of logits / temperature."""
    best, top = _first_column(graph, top_ids, "top_id"), _first_column(graph, names.TOP_LOGITS, "top_logit")
    tempered = graph.node("Mul", [names.LOGITS, names.INVERSE_TEMPERATURE], f"{PATH}/tempered")
    tempered_top = graph.node("Mul", [top, names.INVERSE_TEMPERATURE], f"{PATH}/tempered_top")
    for logits, highest, name in ((names.LOGITS, top, names.LSE), (tempered, tempered_top, names.LSE_T)):
        shares = graph.node("Softmax", [logits], f"{name}/shares", axis=-1)
        share = graph.node("GatherElements", [shares, best], f"{name}/top_share", axis=1)
        graph.node("Sub", [highest, graph.node("Log", [share], f"{name}/log_share")], name)


def _log_sums_as_written(graph: GraphBuilder) -> None:
    """The same; on CUDA, whose Softmax takes a row in one block of threads, a tenth of the time."""
    top = _first_column(graph, names.TOP_LOGITS, "top_logit")
    below = graph.node("Sub", [names.LOGITS, top], f"{PATH}/below_top")
    tempered = graph.node("Mul", [below, names.INVERSE_TEMPERATURE], f"{PATH}/tempered")
    tempered_top = graph.node("Mul", [top, names.INVERSE_TEMPERATURE], f"{PATH}/tempered_top")
    axis = graph.constant(f"{PATH}/last_axis", np.array([-1], np.int64))
    for differences, highest, name in ((below, top, names.LSE), (tempered, tempered_top, names.LSE_T)):
        powers = graph.node("Exp", [differences], f"{name}/powers")
        total = graph.node("ReduceSum", [powers, axis], f"{name}/total", keepdims=1)
        graph.node("Add", [highest, graph.node("Log", [total], f"{name}/log_total")], name)
