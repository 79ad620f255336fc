"""Packed hidden states read as `docs/wire-format.md` says, value by value: graphs are held against it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hyperlane.core import Precision
from hyperlane.wire.packing import BLOCK, BLOCK_BYTES, NOT_FINITE

Floats = npt.NDArray[np.float64]

GOLDEN_VALUES = (1.0, -2.0, 3.0, 0.5, -60.0, 4.0)
GOLDEN_BLOCKS = {
    Precision.INT8: "4f" + "2118140fe8fcdcf3" * 8,
    Precision.INT4: "675c84" + "43f81bec9e443e1d43f81bec7b" + "b15ee04fa662a59eb15ee04f44" + "9532caff9532" + "499f49",
}
"""Of a block that begins with `GOLDEN_VALUES`; all else is zero."""


def unpack_block(data: bytes, precision: Precision) -> Floats:
    """The 64 values of one block."""
    assert len(data) == BLOCK_BYTES[precision]
    scale = float("nan") if data[0] == NOT_FINITE else 2.0 ** ((data[0] - 102) / 6)
    if precision is Precision.INT8:
        return _turned([(octet - 128) * scale for octet in data[1:]])
    values = _turned([level(code) * scale for code in _codes(data)])
    values[data[2] % 64] += (data[1] - 128) * 1.5 * scale
    return values


def unpack_token(data: bytes, precision: Precision) -> Floats:
    """The values of one token."""
    size = BLOCK_BYTES[precision]
    return np.concatenate([unpack_block(data[at : at + size], precision) for at in range(0, len(data), size)])


def _codes(data: bytes) -> list[int]:
    low, middle, nibbles, pairs = data[3:16], data[16:29], data[29:35], data[35:38]
    upper = [(nibbles[n // 2] >> 4 * (n % 2) & 15) + 16 * (pairs[n // 4] >> 2 * (n % 4) & 3) for n in range(12)]
    upper.append(data[2] >> 6)
    numbers = [a + 256 * b + 65536 * c for a, b, c in zip(low, middle, upper, strict=True)]
    return [number // 21**place % 21 for number in numbers for place in range(5)][:BLOCK]


def level(code: int) -> float:
    """What a code of int4 stands for, in scales."""
    t = (code - 10) / 10
    return t * (0.702 - 0.207 * t * t) / (1 - 0.492 * t * t)


def _turned(rotated: list[float]) -> Floats:
    """Value i is the sum of all rotated ones over 8, with a minus where i and the place share an odd number of bits."""
    signs = [[-1.0 if (i & j).bit_count() % 2 else 1.0 for j in range(BLOCK)] for i in range(BLOCK)]
    found: Floats = np.array(signs) @ np.array(rotated) / 8
    return found
