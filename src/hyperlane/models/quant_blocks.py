"""GGML's block formats taken apart: packed bytes to small integers, scales and minima. No format of ours.

Layouts are those of GGML (`ggml-common.h`), which the `gguf` package's dequantisation also implements; the tests
hold the two equal. Everything is little-endian.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Blocks:
    """n blocks of g groups: weight = scale · (q − the format's zero) + low.

    `q`: uint8 [n, g, group]. `scale`: float32 [n, g]. `low`: float32 [n, g], or None in a symmetric format.
    """

    q: Bytes
    scale: Floats
    low: Floats | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """One type: values in a group that shares a scale, the largest q, the q that means 0, and how to take it apart.

    `zero` is None in a format with minima. `split` takes uint8 [n, bytes of a block].
    """

    group: int
    top: int
    zero: int | None
    split: Callable[[Bytes], Blocks]


def _half(raw: Bytes) -> Floats:
    """Float16 fields, uint8 [n, 2] → float32 [n, 1]."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _nibbles(raw: Bytes) -> Bytes:
    """Low nibbles of `width` bytes, then their high nibbles: uint8 [..., width] → [..., 2, width]."""
    out = np.empty((*raw.shape[:-1], 2, raw.shape[-1]), np.uint8)
    np.bitwise_and(raw, 15, out=out[..., 0, :])
    np.right_shift(raw, 4, out=out[..., 1, :])
    return out


def _fifth_bits(raw: Bytes) -> Bytes:
    """32 bits, the lowest first: uint8 [n, 4] → [n, 1, 32] of 0 or 16."""
    return np.unpackbits(raw, axis=-1, bitorder="little")[:, None, :] << np.uint8(4)


def _q4_0(raw: Bytes) -> Blocks:
    return Blocks(_nibbles(raw[:, 2:]).reshape(-1, 1, 32), _half(raw[:, :2]))


def _q4_1(raw: Bytes) -> Blocks:
    return Blocks(_nibbles(raw[:, 4:]).reshape(-1, 1, 32), _half(raw[:, :2]), _half(raw[:, 2:4]))


def _q5_0(raw: Bytes) -> Blocks:
    q = _nibbles(raw[:, 6:]).reshape(-1, 1, 32)
    return Blocks(q | _fifth_bits(raw[:, 2:6]), _half(raw[:, :2]))


def _q5_1(raw: Bytes) -> Blocks:
    q = _nibbles(raw[:, 8:]).reshape(-1, 1, 32)
    return Blocks(q | _fifth_bits(raw[:, 4:8]), _half(raw[:, :2]), _half(raw[:, 2:4]))


def _q8_0(raw: Bytes) -> Blocks:
    # Signed bytes; flipping the sign bit adds 128.
    return Blocks((raw[:, 2:] ^ np.uint8(0x80)).reshape(-1, 1, 32), _half(raw[:, :2]))


def _k_scales(raw: Bytes) -> tuple[Floats, Floats]:
    """Eight 6-bit scales and eight 6-bit minima, uint8 [n, 12] → float32 [n, 8] each.

    Bytes 0…3 hold scales 0…3 and bytes 4…7 minima 0…3 in their low six bits; bytes 8…11 hold the low nibbles of
    scales and of minima 4…7, whose high two bits are the top bits of bytes 0…3 and 4…7.
    """
    scales, minima, rest = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    high_scales = (rest & 15) | ((scales >> 2) & 0x30)
    high_minima = (rest >> 4) | ((minima >> 2) & 0x30)
    return (
        np.concatenate([scales & 63, high_scales], axis=1).astype(np.float32),
        np.concatenate([minima & 63, high_minima], axis=1).astype(np.float32),
    )


def _q4_k(raw: Bytes) -> Blocks:
    scales, minima = _k_scales(raw[:, 4:16])
    # 32 bytes hold two groups: one in the low nibbles, the next in the high ones.
    q = _nibbles(raw[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return Blocks(q, _half(raw[:, :2]) * scales, -(_half(raw[:, 2:4]) * minima))


def _q5_k(raw: Bytes) -> Blocks:
    scales, minima = _k_scales(raw[:, 4:16])
    q = _nibbles(raw[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    # Bit g of byte i is the fifth bit of value i of group g.
    fifth = (raw[:, 16:48].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & np.uint8(1)
    return Blocks(q | (fifth << np.uint8(4)), _half(raw[:, :2]) * scales, -(_half(raw[:, 2:4]) * minima))


def _q6_k(raw: Bytes) -> Blocks:
    # Halves of 128 values: 64 bytes of low nibbles and 32 bytes with the upper two bits of four values each.
    low = _nibbles(raw[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = (raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)) & np.uint8(3)
    scales = np.ascontiguousarray(raw[:, 192:208]).view(np.int8).astype(np.float32)
    return Blocks((low | (high << np.uint8(4))).reshape(-1, 16, 16), _half(raw[:, 208:210]) * scales)


def _q3_k(raw: Bytes) -> Blocks:
    # Halves of 128 values: 32 bytes with the lower two bits of four values each; bit b of mask byte i is the third
    # bit of value 32 b + i. Sixteen 6-bit scales, biased by 32: low nibbles in 8 bytes, upper two bits in 4 bytes.
    shifts = np.array([0, 2, 4, 6], np.uint8)
    low = (raw[:, 32:96].reshape(-1, 2, 1, 32) >> shifts.reshape(1, 1, 4, 1)) & np.uint8(3)
    third = (raw[:, :32].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & np.uint8(1)
    q = low.reshape(-1, 8, 32) | (third << np.uint8(2))
    low_scales = _nibbles(raw[:, 96:104]).reshape(-1, 16)
    high_scales = ((raw[:, 104:108].reshape(-1, 1, 4) >> shifts.reshape(1, 4, 1)) & 3).reshape(-1, 16)
    scales = (low_scales | (high_scales << 4)).astype(np.float32) - 32
    return Blocks(q.reshape(-1, 16, 16), _half(raw[:, 108:110]) * scales)


FORMATS: Mapping[str, Format] = {
    "Q4_0": Format(32, 15, 8, _q4_0),
    "Q4_1": Format(32, 15, None, _q4_1),
    "Q5_0": Format(32, 31, 16, _q5_0),
    "Q5_1": Format(32, 31, None, _q5_1),
    "Q8_0": Format(32, 255, 128, _q8_0),
    "Q3_K": Format(16, 7, 4, _q3_k),
    "Q4_K": Format(32, 15, None, _q4_k),
    "Q5_K": Format(32, 31, None, _q5_k),
    "Q6_K": Format(16, 63, 32, _q6_k),
}
"""The types whose blocks have a form of ours; all others go through float32."""
