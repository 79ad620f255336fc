"""The weights of one unit (a layer, the embedding, the projection) as arrays for a graph. Knows no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from hyperlane.core import WeightForm
from hyperlane.errors import MalformedModel
from hyperlane.graph.forms import (
    Forms,
    MatrixForm,
    Offsets,
    offsets_name,
    packed_name,
    part_forms,
    part_path,
    scales_name,
    values_name,
    weight_names,
    zeros_name,
)
from hyperlane.models.layout import MatrixPart, UnitLayout
from hyperlane.models.quant import dequantize, matrix_form
from hyperlane.models.quant_layout import concat_rows, pack_nibbles, unpack_nibbles, unpermute_rows
from hyperlane.models.weights import QuantMatrix, TensorInfo, TensorSource
from hyperlane.stage.options import BlockOffsets

EMBEDDING = "embedding"
"""Graph path of the table that is looked up, and not multiplied by."""

TILE = 64
"""Columns that CUDA's kernels for a few rows take at a time; what they read of half a tile is not a number."""

FEW_ROWS_BLOCK = 32
"""Of the smallest blocks that those kernels take; matrices of smaller ones stay as they are."""

FINE_LEVELS = {4: 3, 8: 2}
"""By bits: how often what is left of offsets has columns of its own."""

Array = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Arrays = Mapping[str, Array]
Matrix = QuantMatrix | npt.NDArray[np.float32]
_MIDDLE_NIBBLE = 8


@dataclass(frozen=True, slots=True)
class UnitWeights:
    """By initialiser name the arrays, by graph path the forms that say how to use them.

    `to_fold`: by path of a part, matrices whose offsets are in no array, since they are to be folded.
    """

    arrays: Arrays
    forms: Mapping[str, tuple[MatrixForm, ...]]
    to_fold: Mapping[str, QuantMatrix] = field(default_factory=dict)


def read_unit(source: TensorSource, layout: UnitLayout, offsets: BlockOffsets) -> UnitWeights:
    """Read and convert the tensors of a unit.

    Raises:
        MalformedModel, UnsupportedModel, TransferError: as the source and the conversion do.

    """
    arrays: dict[str, Array] = {}
    forms: dict[str, tuple[MatrixForm, ...]] = {}
    to_fold: dict[str, QuantMatrix] = {}
    for part in layout.matrices:
        matrices = [
            (part_path(part.path, index), matrix)
            for index, matrix in enumerate(_matrices(source, part, offsets, layout.weights))
        ]
        forms[part.path] = tuple(_store(arrays, path, matrix, offsets) for path, matrix in matrices)
        if offsets is BlockOffsets.FOLDED:
            to_fold |= {path: matrix for path, matrix in matrices if has_offsets(matrix)}
    for path, tensor in layout.vectors.items():
        arrays[values_name(path)] = dequantize(*_tensor(source, tensor)) + np.float32(layout.norm_bias)
    return UnitWeights(arrays, forms, to_fold)


def read_embedding(source: TensorSource, layout: UnitLayout, offsets: BlockOffsets) -> UnitWeights:
    """As `read_unit`, for a table whose rows are looked up: [rows, columns · bits / 8], or float32 [rows, columns].

    A look-up knows no offsets: types that have them are held wide, or plain where offsets must be exact.
    """
    (part,) = layout.matrices
    info, raw = _tensor(source, part.tensors[0])
    table: Matrix = matrix_form(info, raw, exact=False, weights=layout.weights)
    if offsets in {BlockOffsets.EXACT, BlockOffsets.FINE} and has_offsets(
        matrix_form(info, raw, exact=True, weights=layout.weights)
    ):
        table = dequantize(info, raw)
    arrays: dict[str, Array] = {}
    form = _store(arrays, part.path, table, offsets)
    name = packed_name(part.path) if form.bits else values_name(part.path)
    arrays[name] = arrays[name].reshape(form.rows, -1) if form.bits else np.ascontiguousarray(table)
    return UnitWeights(arrays, {part.path: (form,)})


def _matrices(source: TensorSource, part: MatrixPart, offsets: BlockOffsets, weights: WeightForm) -> list[Matrix]:
    """The part's tensors, neighbours of one form joined to one matrix."""
    joined: list[Matrix] = []
    for tensor, heads in zip(part.tensors, part.rotated_heads, strict=True):
        info, raw = _tensor(source, tensor)
        matrix: Matrix = matrix_form(info, raw, exact=offsets is not BlockOffsets.WIDE, weights=weights)
        if heads:
            matrix = _unpermuted(matrix, heads)
        if joined and _alike(joined[-1], matrix):
            joined[-1] = _join(joined[-1], matrix)
        else:
            joined.append(matrix)
    return joined


def _unpermuted(matrix: Matrix, heads: int) -> Matrix:
    if isinstance(matrix, QuantMatrix):
        return unpermute_rows(matrix, heads)
    return unpermute_rows(matrix, heads)


def _alike(one: Matrix, other: Matrix) -> bool:
    if isinstance(one, QuantMatrix) and isinstance(other, QuantMatrix):
        return (one.bits, one.block, one.offsets is None) == (other.bits, other.block, other.offsets is None)
    return not isinstance(one, QuantMatrix) and not isinstance(other, QuantMatrix)


def _join(one: Matrix, other: Matrix) -> Matrix:
    if isinstance(one, QuantMatrix) and isinstance(other, QuantMatrix):
        return concat_rows([one, other])
    assert not isinstance(one, QuantMatrix)
    assert not isinstance(other, QuantMatrix)
    return np.concatenate([one, other])


def _store(arrays: dict[str, Array], path: str, matrix: Matrix, offsets: BlockOffsets) -> MatrixForm:
    if not isinstance(matrix, QuantMatrix):
        arrays[values_name(path)] = np.ascontiguousarray(matrix.T)
        return MatrixForm(matrix.shape[0], matrix.shape[1])
    kind, levels = Offsets.NONE, 1
    columns = matrix.columns
    if has_offsets(matrix) and offsets is BlockOffsets.FINE and whole_blocks_of_sums(matrix, FINE_LEVELS[matrix.bits]):
        kind, levels = Offsets.COLUMNS, FINE_LEVELS[matrix.bits]
        matrix = with_offset_columns(centred(matrix), levels)
    elif matrix.offsets is not None and offsets in {BlockOffsets.EXACT, BlockOffsets.FINE}:
        kind = Offsets.MATMUL
        arrays[offsets_name(path)] = np.ascontiguousarray(matrix.offsets.T)
    elif matrix.offsets is not None and offsets is not BlockOffsets.FOLDED:
        kind = Offsets.COLUMNS
        matrix = with_offset_columns(matrix)
    arrays[packed_name(path)] = matrix.packed
    arrays[scales_name(path)] = matrix.scales
    if matrix.zeros is not None:
        arrays[zeros_name(path)] = matrix.zeros
    return MatrixForm(matrix.rows, columns, matrix.bits, matrix.block, matrix.zeros is not None, kind, levels)


def as_columns(weights: UnitWeights, paths: Sequence[str]) -> UnitWeights:
    """The unit with these of the matrices that were to be folded holding their offsets as columns."""
    arrays, forms, to_fold = dict(weights.arrays), dict(weights.forms), dict(weights.to_fold)
    for path in paths:
        form = _store(arrays, path, to_fold.pop(path), BlockOffsets.COLUMNS)
        for whole, parts in forms.items():
            forms[whole] = tuple(form if part_path(whole, i) == path else part for i, part in enumerate(parts))
    return UnitWeights(arrays, forms, to_fold)


def few_rows_bytes(arrays: Mapping[str, npt.NDArray[Any]], forms: Forms) -> int:
    """Bytes of what kernels for a few rows hold in an order of their own; 0 where a matrix does not suit them."""
    quantised = [(path, form) for path, form in part_forms(forms) if form.bits]
    if any(form.packed_columns % TILE for _, form in quantised):
        return 0
    taken = [(path, form) for path, form in quantised if path != EMBEDDING and form.block >= FEW_ROWS_BLOCK]
    return sum(arrays[name].nbytes for path, form in taken for name in weight_names(path, form))


def has_offsets(matrix: Matrix) -> TypeGuard[QuantMatrix]:
    """Whether there is more to a matrix's blocks than scale and zero point."""
    return isinstance(matrix, QuantMatrix) and matrix.offsets is not None


def _tensor(source: TensorSource, name: str) -> tuple[TensorInfo, npt.NDArray[np.uint8]]:
    info = source.info(name)
    if info is None:
        raise MalformedModel(f"the tensor '{name}' is missing")
    return info, source.read(name)


def with_offset_columns(matrix: QuantMatrix, levels: int = 1) -> QuantMatrix:
    """The matrix with its block offsets as further quantised columns, to be multiplied by the block sums of x.

    Each of them is rounded to 1/7 (4 bit) or 1/127 (8 bit) of the largest of `block` neighbours in its row; at the next
    level what that leaves is rounded so, in as many columns again.
    """
    assert matrix.offsets is not None
    rows, count = matrix.offsets.shape
    blocks = -(-count // matrix.block)
    left = np.zeros((rows, blocks, matrix.block), np.float32)
    left.reshape(rows, -1)[:, :count] = matrix.offsets
    middle = 1 << (matrix.bits - 1)
    packed, scales = [matrix.packed], [matrix.scales]
    for _ in range(levels):
        scale = np.abs(left).max(axis=-1) / np.float32(middle - 1)
        if levels > 1:
            scale = scale.astype(np.float16).astype(np.float32)  # as it will be used: the next level mends the rest
        steps = np.rint(left * np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0)[..., None])
        steps = steps.clip(-middle, middle - 1)
        left -= steps * scale[..., None]
        q = (steps + middle).astype(np.uint8)
        packed.append(pack_nibbles(q) if matrix.bits == 4 else q)
        scales.append(scale)
    return replace(
        matrix,
        columns=matrix.columns + levels * count,
        packed=np.concatenate(packed, axis=1),
        scales=np.concatenate(scales, axis=1),
        zeros=_with_middle_zeros(matrix, levels * blocks),
        offsets=None,
    )


def whole_blocks_of_sums(matrix: QuantMatrix, levels: int) -> bool:
    """Whether the block sums of x fill whole blocks themselves, and all columns together whole tiles."""
    blocks = matrix.columns // matrix.block
    return matrix.columns % (matrix.block * matrix.block) == 0 and (matrix.columns + levels * blocks) % TILE == 0


def centred(matrix: QuantMatrix) -> QuantMatrix:
    """The same weights without zero points: what those express goes into q where it has room, else into the offsets."""
    if matrix.zeros is None:
        return matrix
    assert matrix.offsets is not None
    middle, count = 1 << (matrix.bits - 1), matrix.scales.shape[1]
    zeros = unpack_nibbles(matrix.zeros, count) if matrix.bits == 4 else matrix.zeros
    shift = middle - zeros.astype(np.int16)
    if matrix.bits == 8:
        moved = matrix.packed.astype(np.int16) + shift[..., None]
        if moved.min() >= 0 and moved.max() < 2 * middle:
            return replace(matrix, packed=moved.astype(np.uint8), zeros=None)
    return replace(matrix, zeros=None, offsets=matrix.offsets + matrix.scales * shift.astype(np.float32))


def _with_middle_zeros(matrix: QuantMatrix, more: int) -> npt.NDArray[np.uint8] | None:
    """Zero points with `more` blocks behind them that are centred."""
    if matrix.zeros is None:
        return None
    count = matrix.scales.shape[1]
    if matrix.bits == 8:
        return np.concatenate([matrix.zeros, np.full((matrix.rows, more), 128, np.uint8)], axis=1)
    nibbles = np.full((matrix.rows, count + more), _MIDDLE_NIBBLE, np.uint8)
    nibbles[:, :count] = np.stack([matrix.zeros & 15, matrix.zeros >> 4], axis=-1).reshape(matrix.rows, -1)[:, :count]
    return pack_nibbles(nibbles)
