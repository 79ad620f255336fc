"""Bytes in any pieces → messages: the incremental decoder that every link shares. Knows no socket and no thread."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from hyperlane.core import StageTiming
from hyperlane.errors import ProtocolError, VersionMismatch
from hyperlane.wire.codec import HEADER, check_header, read_body, read_header
from hyperlane.wire.expected import Expected, expected_after
from hyperlane.wire.frame import Frame, Message
from hyperlane.wire.limits import Terms, payload_bytes
from hyperlane.wire.link import PlacePayload
from hyperlane.wire.timings import TimingRecords

STAGING_BYTES = 4096
"""How far ahead one receive may read: payload bytes that came with it are copied once, all others never.

A one-row frame comes whole in one system call. `benchmarks/hop.py` shows no gain from more, nor from reading less.
"""


def place_afresh(terms: Terms) -> PlacePayload:
    """A `PlacePayload` that gives every frame memory of its own, no more than the link's limits allow."""
    limits, stage = terms.limits, terms.stage

    def place(frame: Frame) -> memoryview:
        return np.empty(payload_bytes(frame.kind, frame.rows, limits, stage), np.uint8).data

    return place


class FrameReader:
    """Loop: `next`; while it returns None, receive into `buffer()` and tell `received` how many bytes came."""

    __slots__ = ("_end", "_expected", "_filled", "_frame", "_payload", "_seen", "_staging", "_start", "_terms", "_view")

    def __init__(self, terms: Terms, staging_bytes: int = STAGING_BYTES) -> None:
        self._terms = terms
        self._staging = bytearray(staging_bytes)
        self._view = memoryview(self._staging)
        self._start = 0
        self._end = 0
        self._frame: Frame | None = None
        self._payload = memoryview(b"")
        self._filled = 0
        self._seen = 0, 0
        self._expected: Expected | None = None

    def expect(self) -> None:
        """Nothing is there: read what will usually come next ahead of its coming."""
        start, whole = self._seen
        if whole and not self.in_mid_frame:  # otherwise a part of the next frame may lie where the last one lay
            self._expected = expected_after(self._view[start : start + whole], self._terms)
        self._seen = 0, 0

    def rehearse(self, place: PlacePayload | None = None) -> None:
        """Do to no effect what the expected frame will take: see `wire/anticipation.py`."""
        expected = self._expected
        if expected is not None and not self.in_mid_frame:
            self._match(expected.head)
            if place is not None:
                with suppress(ProtocolError):  # it is not there yet
                    place(expected.frame)

    @property
    def in_mid_frame(self) -> bool:
        """Whether the end of the stream would now cut a frame in two."""
        return self._frame is not None or self._end > self._start

    def buffer(self) -> memoryview:
        """Where the next bytes go: never empty. They must be received before any other call but `received`."""
        if self._frame is not None:
            return self._payload[self._filled :]
        if self._end == self._start:
            self._start = self._end = 0
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """So many bytes of the last `buffer()` are filled."""
        if self._frame is not None:
            self._filled += count
        else:
            self._end += count

    def next(self, place: PlacePayload) -> Message | None:
        """The next message if it is there whole; its payload is the buffer that `place` gave.

        Raises:
            LinkClosed: BYE came.
            ProtocolError: as `codec.check_header` and `codec.read_body`, or `place` gave another length.

        """
        frame = self._frame
        if frame is not None:
            if self._filled < len(self._payload):
                return None
            self._frame = None
            return frame
        start = self._start
        there = self._end - start
        expected = self._expected
        if expected is not None and there >= expected.whole and self._match(expected.head, start):
            self._expected = None
            self._seen = start, expected.whole
            return self._take_expected(expected, start + len(expected.head), place)
        return self._read(start, there, place)

    def _read(self, start: int, there: int, place: PlacePayload) -> Message | None:
        """Any message, of which so many bytes are there."""
        if there < HEADER.size:
            self._make_room(HEADER.size)
            return None
        try:
            header = read_header(self._view, start)
        except VersionMismatch as error:
            raise ProtocolError(str(error)) from error
        kind = check_header(header, self._terms)
        whole = HEADER.size + header.body_bytes
        if there < whole:
            self._make_room(whole)
            return None
        message = read_body(kind, header, self._view[start + HEADER.size : start + whole], self._terms)
        self._expected = None
        if isinstance(message, Frame):
            self._seen = start, whole
            return self._take_payload(message, header.payload_bytes, start + whole, place)
        self._start += whole
        self._seen = 0, 0  # where the last frame lay, this one lies now, or a part of it
        return message

    def _match(self, head: bytes, start: int = 0) -> bool:
        return self._staging.startswith(head, start)

    def _take_expected(self, expected: Expected, at: int, place: PlacePayload) -> Frame | None:
        """The rest of a frame whose header and rows are as expected; its timing records begin at `at`."""
        end = self._seen[0] + expected.whole
        timings = TimingRecords(bytes(self._view[at:end])) if end > at else ()
        return self._take_payload(expected.frame, expected.payload_bytes, end, place, timings)

    def _take_payload(
        self, frame: Frame, size: int, at: int, place: PlacePayload, timings: Sequence[StageTiming] | None = None
    ) -> Frame | None:
        """The payload from `at` on, as far as it is there. `timings`: where the frame does not have them yet."""
        payload = place(frame)
        if payload.nbytes != size:
            raise ProtocolError(f"a payload of {size} bytes came, but {payload.nbytes} are wanted for these rows")
        if size and (payload.itemsize != 1 or payload.ndim != 1):
            payload = payload.cast("B")
        ahead = min(size, self._end - at)
        if ahead:
            payload[:ahead] = self._view[at : at + ahead]
        self._start = at + ahead
        frame = _with_payload(frame, payload, timings)
        if ahead == size:
            return frame
        self._frame, self._payload, self._filled = frame, payload, ahead
        return None

    def _make_room(self, whole: int) -> None:
        """Move what is there to the front; grow for a body (its length is within the limits) that does not fit."""
        start, end = self._start, self._end
        if end > start and start + whole > len(self._staging):
            rest = bytes(self._view[start:end])
            self._seen = 0, 0
            if whole > len(self._staging):
                self._staging = bytearray(whole)
                self._view = memoryview(self._staging)
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)


def _with_payload(frame: Frame, payload: memoryview, timings: Sequence[StageTiming] | None) -> Frame:
    said = frame.timings if timings is None else timings
    return Frame(frame.kind, frame.epoch, frame.step, frame.rows, (payload,), said, frame.packed)
