"""A graph of matmuls alone: what an engine packs weights with, and what a packed matrix is checked with."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from hyperlane.graph.builder import GraphBuilder
from hyperlane.graph.forms import Forms, part_forms
from hyperlane.graph.matmul import Matmuls


def build_packing(forms: Forms, accuracy: int, weights: Sequence[TensorProto]) -> bytes:
    """A model that multiplies an input of its own by the weights of every part: `input_name` → the part's path."""
    graph = GraphBuilder("packing")
    matmuls = Matmuls(graph, forms, accuracy)
    for path, form in part_forms(forms):
        x = graph.input(input_name(path), TensorProto.FLOAT, [1, "tokens", form.packed_columns])
        graph.output(matmuls.bare(x, path, form), TensorProto.FLOAT, [1, "tokens", form.rows])
    return graph.model(weights)


def input_name(path: str) -> str:
    """What a part's weights are multiplied by."""
    return f"{path}/input"
