"""What the head learns of the ring from its frames: medians over a sliding window. Knows no clock; times are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from hyperlane.core import Plan, StageStatus, StageTiming

WINDOW = 256
"""How many frames a median is taken over."""


@dataclass(frozen=True, slots=True)
class FrameTiming:
    """One frame's way round the ring. `alone`: no other frame was in flight, so it waited for none.

    `sent_bytes`: of the frame that left the head; each stage says how much it passed on. `left_s`: when it left, by the
    head's clock.
    """

    ring_us: float
    tokens: int
    sent_bytes: int
    alone: bool
    stages: tuple[StageTiming, ...]
    left_s: float = 0.0

    @property
    def hop_us(self) -> float:
        """What is neither engine time, a hop: head → stage 0 → … → head has one hop more than stages."""
        computed = sum(stage.computed_us for stage in self.stages)
        return max(0.0, self.ring_us - computed) / (len(self.stages) + 1)


class Timings:
    """The last `WINDOW` frames of one pipeline. One thread notes, any thread reads."""

    __slots__ = ("_at", "_frames")

    def __init__(self) -> None:
        self._frames: list[FrameTiming] = []
        self._at = 0

    def note(self, frame: FrameTiming) -> None:
        """A frame came back."""
        if len(self._frames) < WINDOW:
            self._frames.append(frame)
        else:
            self._frames[self._at] = frame
            self._at = (self._at + 1) % WINDOW

    def recent(self) -> tuple[FrameTiming, ...]:
        """Those frames, in the order in which they came back."""
        frames, at = self._frames[:], self._at
        return (*frames[at:], *frames[:at])

    @property
    def ring_us(self) -> float:
        """Median time from a frame's departure to its return, waiting behind other frames included; 0 without any."""
        return _median([frame.ring_us for frame in self._frames[:]])

    @property
    def hop_us(self) -> float:
        """Median overhead of one hop, of the frames that were alone in the ring; 0 without any."""
        return _median([frame.hop_us for frame in self._frames[:] if frame.alone])

    @property
    def hop_p99_us(self) -> float:
        """99th percentile of the same; 0 while fewer than two frames were alone."""
        hops = [frame.hop_us for frame in self._frames[:] if frame.alone]
        return quantiles(hops, n=100, method="inclusive")[98] if len(hops) > 1 else 0.0

    @property
    def sent_bytes_per_token(self) -> float:
        """Mean bytes on the link to stage 0; 0 without any frame."""
        frames = self._frames[:]
        return sum(frame.sent_bytes for frame in frames) / max(1, sum(frame.tokens for frame in frames))

    def stages(self, plan: Plan) -> tuple[StageStatus, ...]:
        """What each stage of the plan said of itself."""
        frames = self._frames[:]
        tokens = max(1, sum(frame.tokens for frame in frames))
        statuses = []
        for index, stage in enumerate(plan.stages):
            said = [frame.stages[index] for frame in frames if index < len(frame.stages)]
            statuses.append(
                StageStatus(
                    plan=stage,
                    computed_us=_median([one.computed_us for one in said]),
                    waited_us=_median([one.waited_us for one in said]),
                    overhead_us=_median([one.overhead_us for one in said]),
                    sent_bytes_per_token=sum(one.sent_bytes for one in said) / tokens,
                )
            )
        return tuple(statuses)


def _median(values: Sequence[float]) -> float:
    return float(median(values)) if values else 0.0
