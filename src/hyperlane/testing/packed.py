"""Packed hidden states read as `docs/wire-format.md` says, value by value: graphs are held against it."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from hyperlane.core import Precision
from hyperlane.wire.packing import BLOCK, BLOCK_BYTES, NOT_FINITE

Floats = npt.NDArray[np.float64]

GOLDEN_VALUES = (1.0, -2.0, 3.0, 0.5, -60.0, 4.0)
GOLDEN_BLOCKS = {
    Precision.INT8: "4f" + "2118140fe8fcdcf3" * 8,
    Precision.INT4: "6b3d" + "db18" * 8 + "718b" * 8 + "8d8d3c3c",
}
"""Of a block that begins with `GOLDEN_VALUES`; all else is zero."""


def unpack_block(data: bytes, precision: Precision) -> Floats:
    """The 64 values of one block."""
    assert len(data) == BLOCK_BYTES[precision]
    scale = float("nan") if data[0] == NOT_FINITE else 2.0 ** ((data[0] - 102) / 6)
    if precision is Precision.INT8:
        return _turned([(octet - 128) * scale for octet in data[1:]])
    points = point_table()
    found = [points[number] if number < len(points) else (0.0,) * 4 for number in _numbers(data)]
    values = _turned([one * scale for quad in found for one in quad])
    place = sum(octet // 81 % 3 * 3**digit for digit, octet in enumerate(data[34:38]))
    if place < BLOCK:
        values[place] += (data[1] - 128) * 0.5 * scale
    return values


def unpack_token(data: bytes, precision: Precision) -> Floats:
    """The values of one token."""
    size = BLOCK_BYTES[precision]
    return np.concatenate([unpack_block(data[at : at + size], precision) for at in range(0, len(data), size)])


def _numbers(data: bytes) -> list[int]:
    upper = [data[34 + quad // 4] // 3 ** (quad % 4) % 3 for quad in range(16)]
    return [a + 256 * b + 65536 * c for a, b, c in zip(data[2:18], data[18:34], upper, strict=True)]


@functools.cache
def point_table() -> list[tuple[float, ...]]:
    """What the numbers of int4 stand for, in scales."""
    found = []
    for axis in (range(-22, 23, 2), range(-23, 24, 2)):
        pairs = [(a * a + b * b, a, b) for a in axis for b in axis]
        found += [(r + s, a, b, c, d) for r, a, b in pairs for s, c, d in pairs if r + s <= 563]
    return [tuple(one / 2 * _factor(square / 563) for one in point) for square, *point in sorted(found)]


def _factor(u: float) -> float:
    return 0.06597 + 0.02103 * u - 0.02061 * u * u + 0.02485 * u**3


def _turned(rotated: list[float]) -> Floats:
    """Value i is the sum of all rotated ones over 8, with a minus where i and the place share an odd number of bits."""
    signs = [[-1.0 if (i & j).bit_count() % 2 else 1.0 for j in range(BLOCK)] for i in range(BLOCK)]
    found: Floats = np.array(signs) @ np.array(rotated) / 8
    return found
