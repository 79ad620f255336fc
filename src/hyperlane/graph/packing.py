"""A graph of matmuls alone: what an engine packs weights with, and what a packed matrix is checked with."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from hyperlane.graph.builder import GraphBuilder
from hyperlane.graph.forms import Forms, part_path
from hyperlane.graph.matmul import Matmuls


def build_packing(forms: Forms, accuracy: int, weights: Sequence[TensorProto]) -> bytes:
    """A model that multiplies an input `input_name(path)` by the weights at each path, without offsets' own nodes.

    The output of part `p` bears the name of its path, so a model of one matrix has that one output.
    """
    graph = GraphBuilder("packing")
    matmuls = Matmuls(graph, forms, accuracy)
    for path, parts in forms.items():
        x = graph.input(input_name(path), TensorProto.FLOAT, [1, "tokens", parts[0].packed_columns])
        for index, form in enumerate(parts):
            name = part_path(path, index)
            matmuls.bare(x, name, form)
            graph.output(name, TensorProto.FLOAT, [1, "tokens", form.rows])
    return graph.model(weights)


def input_name(path: str) -> str:
    """What a matmul multiplies its weights by."""
    return f"{path}/input"
