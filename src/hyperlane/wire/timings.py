"""Timing records as bytes and back. Pure; the layout is in `docs/wire-format.md`."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

from hyperlane.core import StageTiming
from hyperlane.wire.kind import Buffer

TIMING = struct.Struct("<QIIIII")
"""waited, computed, overhead, previous send (all microseconds), sent bytes, stage."""


class PassedTiming(NamedTuple):
    """What a stage says of a frame that it passes on; see `StageTiming`, which knows the bytes sent, too."""

    stage: int
    waited_us: int
    computed_us: int
    overhead_us: int
    previous_send_us: int


class TimingRecords(Sequence[StageTiming]):
    """The records of a frame as they came, oldest first: stages pass them on, and the head alone reads them.

    Every number that fits its field is allowed, so bytes of a whole number of records are always valid.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    @overload
    def __getitem__(self, index: int) -> StageTiming: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[StageTiming, ...]: ...
    def __getitem__(self, index: int | slice) -> StageTiming | tuple[StageTiming, ...]:
        return tuple(self)[index]

    def __len__(self) -> int:
        return len(self.data) // TIMING.size

    def __iter__(self) -> Iterator[StageTiming]:
        for waited, computed, overhead, previous_send, sent, stage in TIMING.iter_unpack(self.data):
            yield StageTiming(stage, waited, computed, overhead, previous_send, sent)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, TimingRecords | tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def pack_timings(timings: Sequence[StageTiming]) -> Buffer:
    """One record for each stage passed, oldest first.

    Raises:
        struct.error: a number is negative or outside its field's range.

    """
    if isinstance(timings, TimingRecords):
        return timings.data
    return b"".join([_pack(timing) for timing in timings])


def _pack(timing: StageTiming) -> bytes:
    t = timing
    return TIMING.pack(t.waited_us, t.computed_us, t.overhead_us, t.previous_send_us, t.sent_bytes, t.stage)
