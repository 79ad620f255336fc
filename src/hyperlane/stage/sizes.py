"""Bytes that the weights of a unit take as arrays on a device, from the table of tensors alone: nothing is read.

The count of `weights.read_unit` and `numbers.in_types`, without their values; a test holds them equal. Knows no
runtime, and no provider that packs weights in a form of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hyperlane.core import WeightForm
from hyperlane.models.layout import EMBEDDING_UNIT, UnitLayout
from hyperlane.models.quant import QuantPlan, quant_plan
from hyperlane.models.weights import TensorInfo, TensorSource
from hyperlane.stage.options import BlockOffsets
from hyperlane.stage.weights import FEW_ROWS_BLOCK, FINE_LEVELS, TILE


@dataclass(frozen=True, slots=True)
class ValueBytes:
    """Bytes of a value of the residual stream (norms, the embedding), and of a scale or a plain matrix."""

    stream: int
    matrix: int


@dataclass(frozen=True, slots=True)
class UnitSizes:
    """Bytes of a unit. `all`: of its arrays; `few_rows`: of those that kernels for a few rows hold a second time.

    `tiles`: those kernels can take all of its matrices. `widest`: values of the largest quantised matrix, whose float16
    form a product of several rows passes through.
    """

    all: int
    few_rows: int = 0
    tiles: bool = True
    widest: int = 0


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One matrix as it is held; neighbours of one form are joined, which changes no sum. `beside`: bytes of offsets."""

    nbytes: int
    bits: int = 0
    block: int = 0
    rows: int = 0
    columns: int = 0
    beside: int = 0


def unit_sizes(source: TensorSource, unit: UnitLayout, offsets: BlockOffsets, values: ValueBytes) -> UnitSizes:
    """The sizes of a layer, the embedding or the projection; tensors that the source lacks count nothing."""
    is_table = unit.name == EMBEDDING_UNIT
    total = few_rows = widest = 0
    tiles = True
    for part in unit.matrices:
        joined: dict[tuple[int, int], int] = {}
        for info in _infos(source, part.tensors):
            matrix = _table(info, unit.weights, offsets, values) if is_table else _matrix(info, unit, offsets, values)
            total += matrix.nbytes + matrix.beside
            if not matrix.bits:
                continue
            tiles = tiles and matrix.columns % TILE == 0
            if not is_table:
                few_rows += matrix.nbytes if matrix.block >= FEW_ROWS_BLOCK else 0
                key = (matrix.bits, matrix.block)
                joined[key] = joined.get(key, 0) + matrix.rows * matrix.columns
        widest = max(widest, *joined.values(), 0)
    total += sum(values.stream * math.prod(info.shape) for info in _infos(source, tuple(unit.vectors.values())))
    return UnitSizes(total, few_rows, tiles, widest)


def _infos(source: TensorSource, names: tuple[str, ...]) -> Iterator[TensorInfo]:
    return (info for info in map(source.info, names) if info is not None)


def _matrix(info: TensorInfo, unit: UnitLayout, offsets: BlockOffsets, values: ValueBytes) -> _Matrix:
    """A matrix that is multiplied by."""
    plan = quant_plan(info, exact=offsets is not BlockOffsets.WIDE, weights=unit.weights)
    if plan is None:
        return _Matrix(values.matrix * math.prod(info.shape))
    rows, columns = info.shape
    blocks = columns // plan.block
    if not plan.offsets:
        return _held(plan, rows, columns, values.matrix)
    if offsets is BlockOffsets.FINE:
        levels = FINE_LEVELS[plan.bits]
        if columns % plan.block**2 == 0 and (columns + levels * blocks) % TILE == 0:
            plain = QuantPlan(plan.bits, plan.block)
            return _held(plain, rows, columns + levels * blocks, values.matrix)
    if offsets in {BlockOffsets.EXACT, BlockOffsets.FINE}:
        held = _held(plan, rows, columns, values.matrix)
        return replace(held, beside=values.matrix * rows * blocks)
    if offsets is BlockOffsets.COLUMNS:
        held = _held(plan, rows, columns + -(-blocks // plan.block) * plan.block, values.matrix)
        return replace(held, columns=columns + blocks)
    return _held(plan, rows, columns, values.matrix)


def _table(info: TensorInfo, weights: WeightForm, offsets: BlockOffsets, values: ValueBytes) -> _Matrix:
    """A table whose rows are looked up."""
    rows, columns = info.shape
    plan = quant_plan(info, exact=False, weights=weights)
    had = quant_plan(info, exact=True, weights=weights)
    whole = offsets in {BlockOffsets.EXACT, BlockOffsets.FINE} and had is not None and had.offsets
    if plan is None or whole:
        return _Matrix(values.stream * rows * columns)
    return _held(plan, rows, columns, values.stream)


def _held(plan: QuantPlan, rows: int, columns: int, scale_bytes: int) -> _Matrix:
    """Values, scales and zero points of whole blocks."""
    blocks = columns // plan.block
    zeros = -(-blocks * plan.bits // 8) if plan.zeros else 0
    nbytes = rows * (columns * plan.bits // 8 + blocks * scale_bytes + zeros)
    return _Matrix(nbytes, plan.bits, plan.block, rows, columns)
