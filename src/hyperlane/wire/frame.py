"""What travels on a link: the frame as data. The bytes are described in `docs/wire-format.md`."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from hyperlane.core import Row, StageTiming


class Kind(enum.IntEnum):
    """What a frame is. TOKENS, HIDDEN, CANDIDATES and LOGITS are step frames."""

    HELLO = 1
    TOKENS = 2
    HIDDEN = 3
    CANDIDATES = 4
    LOGITS = 5
    COPY = 6
    FAULT = 7
    BYE = 8


Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Frame:
    """One message of a link's epoch. `payload`: buffers that are sent one after the other, at most 64 of them.

    TOKENS: int32 token ids, rows one after the other. HIDDEN: packed hidden states, token-major.
    CANDIDATES and LOGITS: see `hyperlane.wire.candidates`. `timings`: one record for each stage passed.
    """

    kind: Kind
    epoch: int
    step: int
    rows: tuple[Row, ...] = ()
    payload: Sequence[Buffer] = ()
    timings: tuple[StageTiming, ...] = ()
