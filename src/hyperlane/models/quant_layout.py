"""Matrices in the engine's form, rearranged without loss: nibbles, rows, widths and blocks. Knows no GGML type.

Supposes a little-endian machine, as all of Hyperlane does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hyperlane.models.weights import QuantMatrix

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Matrix = TypeVar("Matrix", QuantMatrix, Floats)


def pack_nibbles(values: Bytes) -> Bytes:
    """Two 4-bit values to a byte, the first in the low nibble: [..., n] → [..., ceil(n / 2)], padded with 0."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    pairs = np.ascontiguousarray(values).view(np.uint16)
    return (pairs | (pairs >> np.uint16(4))).astype(np.uint8)


def unpack_nibbles(packed: Bytes, count: int) -> Bytes:
    """The opposite of `pack_nibbles`: [..., bytes] → [..., count]."""
    pairs = packed.astype(np.uint16)
    pairs |= pairs << 4
    pairs &= 0x0F0F
    return pairs.view(np.uint8)[..., :count]


def expand(matrix: QuantMatrix) -> Floats:
    """The weights that a matrix means, float32 [rows, columns]: what the form is defined by."""
    rows, blocks = matrix.scales.shape
    q = unpack_nibbles(matrix.packed, matrix.block) if matrix.bits == 4 else matrix.packed
    centred = q.astype(np.float32) - _zero_points(matrix)[..., None].astype(np.float32)
    weights = matrix.scales[..., None] * centred
    if matrix.offsets is not None:
        weights += matrix.offsets[..., None]
    return weights.reshape(rows, blocks * matrix.block)


def unpermute_rows(matrix: Matrix, heads: int) -> Matrix:
    """Undo the row order that GGUF gives `attn_q` and `attn_k` of family `llama`; exact, since blocks lie in rows.

    The file interleaves the two halves of every head (value 2i and 2i + 1 rotate together); the result has value i
    rotate with value i + half, as Hyperlane's graphs do for every family. `heads`: of this matrix (kv_heads for k).

    Raises:
        ValueError: the rows are not a whole number of pairs for each head.

    """
    rows = matrix.rows if isinstance(matrix, QuantMatrix) else matrix.shape[0]
    if rows % (2 * heads):
        raise ValueError(f"{rows} rows are not {heads} heads of an even size")
    order = np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
    return take_rows(matrix, order)


def take_rows(matrix: Matrix, order: npt.NDArray[np.intp]) -> Matrix:
    """The rows of a matrix in another order, as copies."""
    if not isinstance(matrix, QuantMatrix):
        return matrix[order]
    return replace(
        matrix,
        rows=len(order),
        packed=matrix.packed[order],
        scales=matrix.scales[order],
        zeros=None if matrix.zeros is None else matrix.zeros[order],
        offsets=None if matrix.offsets is None else matrix.offsets[order],
    )


def concat_rows(parts: Sequence[QuantMatrix]) -> QuantMatrix:
    """Matrices of the same columns as one, their rows one after another: Q, K and V, or gate and up, in one matmul.

    Exact, whatever the parts' forms: 4 bit widens to 8 and blocks of 32 split into 16 where another part needs it,
    which costs memory; zero points and offsets are filled in.

    Raises:
        ValueError: there are no parts, or their columns differ.

    """
    if not parts or len({part.columns for part in parts}) > 1:
        raise ValueError(f"cannot join matrices of {[part.columns for part in parts]} columns")
    bits, block = max(part.bits for part in parts), min(part.block for part in parts)
    alike = [split_blocks(part, block) if part.bits == bits else split_blocks(widen(part), block) for part in parts]
    has_zeros = any(part.zeros is not None for part in alike)
    has_offsets = any(part.offsets is not None for part in alike)
    return QuantMatrix(
        rows=sum(part.rows for part in alike),
        columns=alike[0].columns,
        bits=bits,
        block=block,
        packed=np.concatenate([part.packed for part in alike]),
        scales=np.concatenate([part.scales for part in alike]),
        zeros=np.concatenate([_filled_zeros(part) for part in alike]) if has_zeros else None,
        offsets=np.concatenate([_filled_offsets(part) for part in alike]) if has_offsets else None,
    )


def widen(matrix: QuantMatrix) -> QuantMatrix:
    """A 4-bit matrix in 8 bits, exact. Its zero points vanish: q − z always fits around 128."""
    if matrix.bits == 8:
        return matrix
    shift = (128 - _zero_points(matrix)).astype(np.uint8)
    packed = unpack_nibbles(matrix.packed, matrix.block) + shift[..., None]
    return replace(matrix, bits=8, packed=packed, zeros=None)


def split_blocks(matrix: QuantMatrix, block: int) -> QuantMatrix:
    """The same weights in smaller blocks, exact: each part of a block takes its scale, zero point and offset."""
    times = matrix.block // block
    if times == 1:
        return matrix
    scales = np.repeat(matrix.scales, times, axis=1)
    zeros = None
    if matrix.zeros is not None:
        zeros = np.repeat(_zero_points(matrix), times, axis=1)
        zeros = pack_nibbles(zeros) if matrix.bits == 4 else zeros
    return replace(
        matrix,
        block=block,
        packed=matrix.packed.reshape(*scales.shape, block * matrix.bits // 8),
        scales=scales,
        zeros=zeros,
        offsets=None if matrix.offsets is None else np.repeat(matrix.offsets, times, axis=1),
    )


def _zero_points(matrix: QuantMatrix) -> Bytes:
    """Zero points one to a byte, uint8 [rows, blocks]."""
    if matrix.zeros is None:
        return np.full(matrix.scales.shape, 1 << (matrix.bits - 1), np.uint8)
    return unpack_nibbles(matrix.zeros, matrix.scales.shape[1]) if matrix.bits == 4 else matrix.zeros


def _filled_zeros(matrix: QuantMatrix) -> Bytes:
    if matrix.zeros is not None:
        return matrix.zeros
    return pack_nibbles(_zero_points(matrix)) if matrix.bits == 4 else _zero_points(matrix)


def _filled_offsets(matrix: QuantMatrix) -> Floats:
    return np.zeros_like(matrix.scales) if matrix.offsets is None else matrix.offsets
