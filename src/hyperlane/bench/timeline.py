"""When each stage computed which frame, from what the frames say; and how much of the time no stage computed. Pure.

Stages' clocks are not synchronised: each stage's own times, which follow each other without a gap, are laid where its
frames can have been, between leaving the head and coming back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hyperlane.head.timings import FrameTiming


@dataclass(frozen=True, slots=True)
class Bar:
    """A stage computes a frame: seconds from the first bar's begin."""

    stage: int
    begin_s: float
    end_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """The bars of some frames, by stage and in order."""

    stages: int
    bars: tuple[Bar, ...]

    @property
    def length_s(self) -> float:
        """From the first bar's begin to the last one's end."""
        return max((bar.end_s for bar in self.bars), default=0.0)

    @property
    def bubble(self) -> float:
        """The share of all stages' time in which they computed nothing; 0 without frames."""
        whole = self.stages * self.length_s
        return 1 - sum(bar.end_s - bar.begin_s for bar in self.bars) / whole if whole else 0.0


def timeline(frames: Sequence[FrameTiming]) -> Timeline:
    """Lay frames that followed each other, with a record of every stage each, on one clock."""
    stages = min((len(frame.stages) for frame in frames), default=0)
    if not stages:
        return Timeline(0, ())
    spans = [_laid(frames, stage) for stage in range(stages)]
    first = min(begin for span in spans for begin, _ in span)
    bars = [
        Bar(stage, begin - first, end - first, frame.tokens)
        for stage, span in enumerate(spans)
        for frame, (begin, end) in zip(frames, span, strict=True)
    ]
    return Timeline(stages, tuple(bars))


def _laid(frames: Sequence[FrameTiming], stage: int) -> list[tuple[float, float]]:
    """Begin and end of each frame's compute at a stage, by the head's clock."""
    own = _own_times(frames, stage)
    earliest = max(
        frame.left_s + _computed_s(frame, 0, stage) - begin for frame, (begin, _) in zip(frames, own, strict=True)
    )
    latest = min(
        frame.left_s + frame.ring_us * 1e-6 - _computed_s(frame, stage + 1, len(frame.stages)) - end
        for frame, (_, end) in zip(frames, own, strict=True)
    )
    shift = (earliest + latest) / 2
    return [(begin + shift, end + shift) for begin, end in own]


def _own_times(frames: Sequence[FrameTiming], stage: int) -> list[tuple[float, float]]:
    """Begin and end of each frame's compute, in seconds since the stage was ready for the first one."""
    records = [frame.stages[stage] for frame in frames]
    times, now = [], 0.0
    for record, following in pairwise([*records, None]):
        assert record is not None
        begin = now + (record.waited_us + record.overhead_us) * 1e-6
        end = begin + record.computed_us * 1e-6
        times.append((begin, end))
        now = end + (following.previous_send_us * 1e-6 if following is not None else 0.0)
    return times


def _computed_s(frame: FrameTiming, first: int, end: int) -> float:
    return sum(record.computed_us for record in frame.stages[first:end]) * 1e-6
