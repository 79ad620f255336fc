"""What a hidden state is on a link: bytes of a token, and of a block of its values, at each precision. Pure.

The layout is in `docs/wire-format.md`. The arithmetic is part of the stages' graphs (`hyperlane.graph.wire_codec`).
"""

from __future__ import annotations

from hyperlane.core import ElementType, Precision
from hyperlane.errors import ConfigError

BLOCK = 64
"""Values that are packed together: they share a scale."""

BLOCK_BYTES = {Precision.INT8: 65, Precision.INT4: 38}
"""Bytes of a block; its first is the scale's code."""

NOT_FINITE = 255
"""The scale's code of a block that holds a value which is not finite, or beyond what scales cover."""

QUAD = 4
"""Values of a block that int4 holds in one number: 16 low bits in bytes, and a digit base 3 above them."""


def packs(hidden: int) -> bool:
    """Whether hidden states of so many values can be packed at all."""
    return hidden % BLOCK == 0


def token_bytes(hidden: int, precision: Precision, element: ElementType) -> int:
    """Bytes of one token's hidden state; `element`: the engine's own type, which `raw` carries.

    Raises:
        ConfigError: the values do not fill whole blocks.

    """
    if not precision.packs:
        return hidden * (element if precision is Precision.RAW else ElementType.F32).bytes
    if not packs(hidden):
        raise ConfigError(
            f"hidden states of {hidden} values cannot be packed as {precision.value}, which takes blocks of {BLOCK}; "
            f"use {Precision.RAW.value}"
        )
    return packed_bytes(hidden, precision)


def packed_bytes(hidden: int, precision: Precision) -> int:
    """Bytes of so many values in blocks, the last of which need not be full to be counted."""
    return -(-hidden // BLOCK) * BLOCK_BYTES[precision]
