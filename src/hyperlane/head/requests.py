"""The requests of a head, whichever pipeline serves them: taken in, counted, and ended exactly once.

Knows no pipeline and no slot.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection

from hyperlane.core import Failed, Finished, FinishReason
from hyperlane.errors import PipelineLost
from hyperlane.head.intake import Intake
from hyperlane.head.options import Counters
from hyperlane.head.sequence import Sequence


class Requests:
    """What outlives a pipeline: the intake, what is counted, and the clock (seconds). Used by the head's thread."""

    def __init__(self, intake: Intake, counters: Counters, clock: Callable[[], float]) -> None:
        self.intake = intake
        self.counters = counters
        self.clock = clock
        self._due: list[tuple[float, int]] = []

    def take_in(self) -> tuple[list[Sequence], list[int]]:
        """What has arrived since the last call, and which lanes were cancelled."""
        arrived, cancelled = self.intake.drain()
        if arrived:
            self._admit(arrived)
        return arrived, cancelled

    @property
    def due_s(self) -> float:
        """When the next request's time may be over; infinite when none has a limit."""
        return self._due[0][0] if self._due else math.inf

    def overdue(self) -> list[int]:
        """The lanes of those whose time was over since the last call; some may have ended."""
        lanes = []
        while self._due and self._due[0][0] <= self.clock():
            lanes.append(heapq.heappop(self._due)[1])
        return lanes

    def shut(self, reason: str) -> list[Sequence]:
        """Accept no more, for this reason; what had arrived."""
        late = self.intake.shut(reason)
        self._admit(late)
        return late

    def _admit(self, sequences: Collection[Sequence]) -> None:
        for sequence in sequences:
            if not sequence.counted:
                self.counters.prompt_tokens += len(sequence.request.prompt)
                sequence.counted = True
            if sequence.due_s < math.inf:
                heapq.heappush(self._due, (sequence.due_s, sequence.lane.id))

    def end(self, sequence: Sequence, event: Finished | Failed) -> None:
        """The request's last event."""
        self.intake.ended(sequence, event, self.clock())
        sequence.end(event)

    def cancel(self, sequence: Sequence) -> None:
        """Nobody reads it any more."""
        self.end(sequence, sequence.finished(FinishReason.CANCELLED))

    def fail(self, sequences: Collection[Sequence], reason: str, cause: Exception | None) -> None:
        """End all that have not ended, each with an error of its own."""
        for sequence in sequences:
            if not sequence.ended:
                error = PipelineLost(reason)
                error.__cause__ = cause
                self.end(sequence, Failed(error))
