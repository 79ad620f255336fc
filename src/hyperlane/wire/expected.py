"""The frame that usually follows another one on a link, read before it comes. Pure.

From one decode step to the next, rows differ in nothing but their start, and headers in the step. So while a link
waits, the frame one step later is put together and read with all of its checks; when exactly these bytes arrive,
comparing them is all that is left to do. Any other frame is read as it comes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from hyperlane.errors import LinkClosed, ProtocolError
from hyperlane.wire.codec import HEADER, STEP, STEP_AT, check_header, read_body, read_header
from hyperlane.wire.frame import Frame
from hyperlane.wire.limits import Terms
from hyperlane.wire.rows import ROW, START, START_AT
from hyperlane.wire.timings import TIMING


class Expected(NamedTuple):
    """A frame that may come. `head`: the bytes of its header and rows; timing records and payload may be any.

    `frame`: what these bytes mean, without timings and payload. `whole`: bytes with its timing records.
    """

    head: bytes
    frame: Frame
    whole: int
    payload_bytes: int


def expected_after(body: memoryview, terms: Terms) -> Expected | None:
    """What usually follows a frame, given its header, rows and timings; None where nothing can be said.

    That is so unless all of its rows are of one token.
    """
    try:
        header = read_header(body)
        rows_end = HEADER.size + header.rows_bytes
        head = bytearray(body[:rows_end])
        STEP.pack_into(head, STEP_AT, header.step + 1)
        for at in range(HEADER.size, HEADER.size + header.rows * ROW.size, ROW.size):
            (start,) = START.unpack_from(head, at + START_AT)
            START.pack_into(head, at + START_AT, start + 1)
        following = read_header(head)
        message = read_body(
            check_header(following, terms), following._replace(timings=0), memoryview(head)[HEADER.size :], terms
        )
    except (ProtocolError, LinkClosed, struct.error):  # it would not be allowed, or is beyond a field's range
        return None
    if not isinstance(message, Frame) or any(row.count != 1 for row in message.rows):
        return None
    return Expected(bytes(head), message, len(head) + header.timings * TIMING.size, header.payload_bytes)
