"""Offsets of weights folded into what the engine keeps beside packed weights, so that they are exact and cost nothing.

ONNX Runtime's integer kernels compute scale · Σ x·q for every block and add (Σ x) · c, where c = −scale · zero is
a float32 that they work out when they pack the weights. For w = scale · (q − zero) + offset, c + offset is the same
arithmetic. Where each c lies in a packed buffer is not documented, so it is found: the packing of a matrix of the same
shape, whose c are all different, shows every place. A buffer that does not hold exactly the c that it should is left
alone, and the caller falls back to another form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hyperlane.models.quant_layout import pack_nibbles, unpack_nibbles
from hyperlane.models.weights import QuantMatrix

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

Pack = Callable[[QuantMatrix], Bytes | None]
"""The engine's packing of a matrix whose zero points are given; None when it does not pack such a matrix."""

MAX_MARKED = 1 << 24
"""Whole numbers above this are not all float32 values."""


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where c lies: at indices `at` of the buffer seen as float32, those of the flattened [rows, blocks] in `order`."""

    at: npt.NDArray[np.intp]
    order: npt.NDArray[np.intp]


class Folder:
    """Folds offsets into packed matrices; what it found of a shape it remembers."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack
        self._known: dict[tuple[int, int, int, int], Places | None] = {}

    def places(self, rows: int, columns: int, bits: int, block: int) -> Places | None:
        """Where the packing of such a matrix keeps its c; None if that is not to be seen."""
        shape = (rows, columns, bits, block)
        if shape not in self._known:
            self._known[shape] = self._find(*shape)
        return self._known[shape]

    def fold(self, matrix: QuantMatrix, packed: Bytes) -> bool:
        """Add the matrix's offsets to the c in its packing; False, and nothing done, where that cannot be."""
        places = self.places(matrix.rows, matrix.columns, matrix.bits, matrix.block)
        if places is None or matrix.offsets is None or matrix.zeros is None:
            return False
        values, zeros = _floats(packed), zero_points(matrix)
        if not np.array_equal(values[places.at], (-matrix.scales * zeros).reshape(-1)[places.order]):
            return False
        values[places.at] = (matrix.offsets - matrix.scales * zeros).reshape(-1)[places.order]
        return True

    def _find(self, rows: int, columns: int, bits: int, block: int) -> Places | None:
        count = rows * columns // block
        if count > MAX_MARKED:
            return None
        packed = self._pack(marked_matrix(rows, columns, bits, block))
        if packed is None:
            return None
        values = _floats(packed)
        found = np.flatnonzero(values <= -1)
        if len(found) != count:
            return None
        order = (-values[found]).astype(np.intp) - 1
        if not np.array_equal(np.sort(order), np.arange(count)):
            return None
        return Places(found, order)


def marked_matrix(rows: int, columns: int, bits: int, block: int) -> QuantMatrix:
    """A matrix of zeros whose c are −1, −2, … in row-major order of the blocks."""
    blocks = columns // block
    ones = np.ones((rows, blocks), np.uint8)
    return QuantMatrix(
        rows,
        columns,
        bits,
        block,
        packed=np.zeros((rows, blocks, block * bits // 8), np.uint8),
        scales=np.arange(1, rows * blocks + 1, dtype=np.float32).reshape(rows, blocks),
        zeros=pack_nibbles(ones) if bits == 4 else ones,
    )


def zero_points(matrix: QuantMatrix) -> Floats:
    """Zero points one by one, float32 [rows, blocks]."""
    assert matrix.zeros is not None
    count = matrix.scales.shape[1]
    zeros = unpack_nibbles(matrix.zeros, count) if matrix.bits == 4 else matrix.zeros
    return zeros.astype(np.float32)


def _floats(packed: Bytes) -> Floats:
    return packed[: packed.nbytes // 4 * 4].view(np.float32)
