"""The time between two pipelines: requests wait for the next one, may be cancelled, and give up in the end.

Knows no pipeline; time comes from the requests' clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from hyperlane.head.requests import Requests
from hyperlane.head.sequence import Sequence

MAX_REPLAYS = 8
"""A request that was carried over so often without a new token ends: it may itself be what stages fail of."""

STAYS_S = 1.0
"""Requests whose pipeline was let go for another one stay for so long: that takes but a moment."""


class Gap:
    """Requests without a pipeline, in the order in which the next one takes them. Used by the head's thread."""

    def __init__(
        self, requests: Requests, carried: Collection[Sequence], patience_s: float, cause: Exception | None
    ) -> None:
        """`carried`: what the last pipeline left. `patience_s`: how long each waits. `cause`: what ended the last."""
        self._requests = requests
        self._since_s = requests.clock()
        self._patience_s = patience_s
        self._cause = cause
        self._waiting = {sequence.lane.id: sequence for sequence in carried}
        for sequence in carried:
            sequence.carry(self._since_s)
        self._drop([sequence for sequence in carried if sequence.is_probe], f"the pipeline was lost: {cause}")
        doomed = [sequence for sequence in self._waiting.values() if sequence.replays > MAX_REPLAYS]
        self._drop(doomed, f"{MAX_REPLAYS} pipelines were lost while they computed this request: {cause}")

    def tend(self) -> float | None:
        """Take in, end what is cancelled, out of time, or has waited too long.

        Returns the seconds until the next one may have to end; None: nobody waits.
        """
        arrived, cancelled = self._requests.take_in()
        self._waiting.update((sequence.lane.id, sequence) for sequence in arrived)
        for lane in [*cancelled, *(sequence.lane.id for sequence in arrived if sequence.abandoned)]:
            if (gone := self._waiting.pop(lane, None)) is not None:
                self._requests.cancel(gone)
        for lane in self._requests.overdue():
            if (over := self._waiting.pop(lane, None)) is not None:
                self._requests.end(over, over.expired())
        now_s = self._requests.clock()
        late = [sequence for sequence in self._waiting.values() if self._until_s(sequence) <= now_s]
        self._drop(late, self._too_late())
        until_s = min((self._until_s(sequence) for sequence in self._waiting.values()), default=None)
        return None if until_s is None else min(until_s, self._requests.due_s) - now_s

    def hand_over(self, take: Callable[[Sequence, float], bool]) -> None:
        """Offer each to whoever else serves, with the seconds that it has waited; who is taken is no longer here."""
        waited_s = self._requests.clock() - self._since_s
        if self._cause is None and waited_s < STAYS_S:
            return
        for lane, sequence in list(self._waiting.items()):
            if not sequence.is_probe and take(sequence, waited_s):
                del self._waiting[lane]
                self._requests.intake.gave_away()

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits."""
        return not self._waiting

    def end(self) -> list[Sequence]:
        """Those that wait, for the next pipeline or to be told that there is none."""
        waiting, self._waiting = list(self._waiting.values()), {}
        return waiting

    def _until_s(self, sequence: Sequence) -> float:
        return max(self._since_s, sequence.submitted_s) + self._patience_s

    def _too_late(self) -> str:
        lost = f"the pipeline was lost: {self._cause}" if self._cause else "there is no pipeline"
        if not self._patience_s:
            return f"{lost}; send the request again"
        return f"{lost}; no other was ready within {self._patience_s:g} s; send the request again"

    def _drop(self, sequences: Collection[Sequence], reason: str) -> None:
        for sequence in sequences:
            self._waiting.pop(sequence.lane.id, None)
        self._requests.fail(sequences, reason, self._cause)
