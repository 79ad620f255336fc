"""Packed hidden states read as `docs/wire-format.md` says, value by value: graphs are held against it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hyperlane.core import Precision
from hyperlane.wire.packing import BLOCK, BLOCK_BYTES, NOT_FINITE

Floats = npt.NDArray[np.float64]

LEVELS = (0.1037626, 0.3127914, 0.5264881, 0.7485333, 0.9836425, 1.2384672, 1.5234143, 1.8569773, 2.278714, 2.9079607)

GOLDEN_VALUES = (1.0, -2.0, 3.0, 0.5, -60.0, 4.0)
GOLDEN_BLOCKS = {
    Precision.INT8: "51" + "261e1a15e2f5d7ec" * 8,
    Precision.INT4: "5e6b04" + "e64afb1e0dc6912de64afb1e0dc6912de64afb1e0d" + "bea6066ebea6066ebea6e6" + "a6a606",
}
"""Of a block that begins with `GOLDEN_VALUES`; all else is zero."""


def unpack_block(data: bytes, precision: Precision) -> Floats:
    """The 64 values of one block."""
    assert len(data) == BLOCK_BYTES[precision]
    scale = float("nan") if data[0] == NOT_FINITE else 2.0 ** ((data[0] - 96) / 4)
    if precision is Precision.INT8:
        return _turned([(octet - 128) * scale for octet in data[1:]])
    values = _turned([_level(code) * scale for code in _codes(data)])
    values[data[2]] += (data[1] - 128) * 4 * scale
    return values


def unpack_token(data: bytes, precision: Precision) -> Floats:
    """The values of one token."""
    size = BLOCK_BYTES[precision]
    return np.concatenate([unpack_block(data[at : at + size], precision) for at in range(0, len(data), size)])


def _codes(data: bytes) -> list[int]:
    low, nibbles, bits = data[3:24], data[24:35], data[35:38]
    high = [(nibbles[n // 2] >> 4 * (n % 2) & 15) + 16 * (bits[n // 8] >> n % 8 & 1) for n in range(22)]
    numbers = [octet + 256 * upper for octet, upper in zip(low, high, strict=False)]
    return [number // 20**place % 20 for number in numbers for place in range(3)] + [high[21] % 20]


def _level(code: int) -> float:
    return LEVELS[code - 10] if code >= 10 else -LEVELS[9 - code]


def _turned(rotated: list[float]) -> Floats:
    """Value i is the sum of all rotated ones over 8, with a minus where i and the place share an odd number of bits."""
    signs = [[-1.0 if (i & j).bit_count() % 2 else 1.0 for j in range(BLOCK)] for i in range(BLOCK)]
    found: Floats = np.array(signs) @ np.array(rotated) / 8
    return found
