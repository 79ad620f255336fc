"""Matmuls with quantised weights: the operator, the block sums that offsets multiply, the parts of a matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyperlane.graph.builder import GraphBuilder
from hyperlane.graph.forms import (
    Forms,
    MatrixForm,
    Offsets,
    offsets_name,
    part_path,
    values_name,
    weight_names,
)


class Matmuls:
    """Adds matmuls to a graph. The sums of an input over its blocks are computed once and shared.

    `accuracy` is MatMulNBits' accuracy_level: 4 for int8 arithmetic, 1 for float32. `may_be_empty`: set where inputs
    may have no tokens; ONNX Runtime's ReduceSum keeps the summed axis of an empty input.
    """

    def __init__(self, graph: GraphBuilder, forms: Forms, accuracy: int) -> None:
        self._graph = graph
        self._forms = forms
        self._accuracy = accuracy
        self._sums: dict[tuple[str, int], str] = {}
        self._extended: dict[tuple[str, int, int], str] = {}
        self.may_be_empty = False

    def matmul(self, x: str, path: str) -> str:
        """Multiply x [..., columns] by the weights at `path`: [..., rows]. Returns the name, which is `path`."""
        forms = self._forms[path]
        if len(forms) == 1:
            return self._part(x, path, forms[0])
        names = [part_path(path, index) for index in range(len(forms))]
        parts = [self._part(x, f"{name}/part", form, name) for name, form in zip(names, forms, strict=True)]
        return self._graph.node("Concat", parts, path, axis=-1)

    def apart(self, x: str, path: str, rows: Sequence[int]) -> list[str] | None:
        """The products of the parts at `path`, each by itself; None unless these are the parts' rows."""
        forms = self._forms[path]
        if len(forms) == 1 or [form.rows for form in forms] != list(rows):
            return None
        names = [part_path(path, index) for index in range(len(forms))]
        return [self._part(x, f"{name}/part", form, name) for name, form in zip(names, forms, strict=True)]

    def bare(self, x: str, path: str, form: MatrixForm) -> str:
        """The one operator that holds the weights of a part; x [..., packed_columns]."""
        if form.bits == 0:
            return self._graph.node("MatMul", [x, *weight_names(path, form)], path)
        return self._quantised(x, path, path, form)

    def _part(self, x: str, name: str, form: MatrixForm, path: str = "") -> str:
        path = path or name
        if form.bits == 0:
            return self._graph.node("MatMul", [x, values_name(path)], name)
        if form.offsets is not Offsets.MATMUL:
            return self._quantised(self._extend(x, form), name, path, form)
        main = self._quantised(x, f"{name}/scaled", path, form)
        shift = self._graph.node("MatMul", [self._block_sums(x, form), offsets_name(path)], f"{name}/shift")
        return self._graph.node("Add", [main, shift], name)

    def _quantised(self, x: str, name: str, path: str, form: MatrixForm) -> str:
        return self._graph.contrib(
            "MatMulNBits",
            [x, *weight_names(path, form)],
            name,
            K=form.packed_columns,
            N=form.rows,
            bits=form.bits,
            block_size=form.block,
            accuracy_level=self._accuracy,
        )

    def _extend(self, x: str, form: MatrixForm) -> str:
        """X with its block sums behind it, [..., columns + levels · columns / block]."""
        if form.offsets is Offsets.NONE:
            return x
        key = (x, form.block, form.levels)
        if key not in self._extended:
            sums, name = self._block_sums(x, form), f"{x}/extended.{form.block}.{form.levels}"
            self._extended[key] = self._graph.node("Concat", [x, *[sums] * form.levels], name, axis=-1)
        return self._extended[key]

    def _block_sums(self, x: str, form: MatrixForm) -> str:
        """Sums of x over its blocks, [..., columns / block]; each row summed alone, so a batch changes nothing."""
        key = (x, form.block)
        if key not in self._sums:
            shape = self._graph.constant(
                f"blocks.{form.columns}.{form.block}", np.array([0, 0, form.sums, form.block], np.int64)
            )
            blocks = self._graph.node("Reshape", [x, shape], f"{x}/blocks.{form.block}")
            axis = self._graph.constant("last_axis", np.array([-1], np.int64))
            sums = self._graph.node("ReduceSum", [blocks, axis], f"{x}/sums.{form.block}", keepdims=0)
            if self.may_be_empty:
                flat = self._graph.constant(f"sums.{form.sums}", np.array([0, 0, form.sums], np.int64))
                sums = self._graph.node("Reshape", [sums, flat], f"{x}/sums.{form.block}/flat")
            self._sums[key] = sums
        return self._sums[key]
