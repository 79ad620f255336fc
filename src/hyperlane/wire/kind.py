"""The kinds of frame and what may stand in for their bytes."""

from __future__ import annotations

import enum


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
    PROBE = 9


class Role(enum.IntEnum):
    """Which side of the dialled stage a link is on: frames flow into it (UPSTREAM) or out of it (DOWNSTREAM).

    PROBE: no link, but a connection on which the path is measured; it concerns no stage.
    """

    UPSTREAM = 1
    DOWNSTREAM = 2
    PROBE = 3


Buffer = bytes | bytearray | memoryview
