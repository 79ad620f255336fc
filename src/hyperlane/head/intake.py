"""Requests and cancels on their way from any thread to the head's. Owns the bound on accepted requests and counts.

Knows no slot and no frame. What was accepted is handed over exactly once: to `drain`, or to `shut`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from hyperlane.core import Failed, Finished
from hyperlane.errors import HyperlaneError, Overloaded, PipelineLost
from hyperlane.head.sequence import Sequence
from hyperlane.head.turnover import Turnover
from hyperlane.observe.requests import RequestCounter


class Intake:
    """Open while a pipeline runs. Every method may be called from any thread."""

    def __init__(self, reason: str) -> None:
        """`reason`: what a request is told while the intake is shut."""
        self._lock = threading.Lock()
        self.reason = reason
        self._wake: Callable[[], None] | None = None
        self._capacity = 0
        self._slots = 1
        self._arrived: list[Sequence] = []
        self._cancelled: list[int] = []
        self._turnover = Turnover()
        self.counter = RequestCounter()
        """What became of requests; probes are none."""
        self.accepted = 0
        """Requests that were accepted and have not ended."""

    def open(self, wake: Callable[[], None], slots: int, queue: int) -> None:
        """Accept requests. `wake` makes the head look; `slots` + `queue`: how many may be unfinished at once."""
        with self._lock:
            self._wake, self._slots, self._capacity = wake, slots, slots + queue

    def shut(self, reason: str) -> list[Sequence]:
        """Accept no more; returns what `drain` has not handed over."""
        with self._lock:
            self._wake, self.reason = None, reason
            arrived, self._arrived, self._cancelled = self._arrived, [], []
            return arrived

    def accept(self, sequence: Sequence) -> None:
        """Take a request on.

        Raises:
            PipelineLost: the intake is shut.
            Overloaded: as many requests as may be are unfinished.

        """
        with self._lock:
            if self._wake is None:
                raise self._refused(sequence, PipelineLost(self.reason))
            if self.accepted >= self._capacity:
                raise self._refused(sequence, self._overloaded(sequence.submitted_s))
            if not self.accepted:
                self._turnover.began(sequence.submitted_s)
            if not sequence.is_probe:
                self.counter.admit()
            self._take(sequence, self._wake)

    def adopt(self, sequence: Sequence) -> bool:
        """Take over a request that another intake accepted, however full this one is; False: it is shut."""
        with self._lock:
            if self._wake is None:
                return False
            self._take(sequence, self._wake)
            return True

    def _take(self, sequence: Sequence, wake: Callable[[], None]) -> None:
        self.accepted += 1
        sequence.settle(self.cancel)
        self._arrived.append(sequence)
        wake()

    def gave_away(self) -> None:
        """Another intake has adopted a request that was accepted here."""
        with self._lock:
            self.accepted -= 1

    @property
    def has_place(self) -> bool:
        """Whether one request more would be accepted now. For a look."""
        return self._wake is not None and self.accepted < self._capacity

    def _refused(self, sequence: Sequence, error: HyperlaneError) -> HyperlaneError:
        if not sequence.is_probe:
            self.counter.refuse(error)
        return error

    def _overloaded(self, now_s: float) -> Overloaded:
        return Overloaded(
            f"{self.accepted - self._slots} requests wait for one of {self._slots} slots; try again later",
            retry_after_s=self._turnover.retry_after_s(now_s),
        )

    def cancel(self, lane: int) -> None:
        """The reader of a request went away."""
        with self._lock:
            if self._wake is not None:
                self._cancelled.append(lane)
                self._wake()

    def drain(self) -> tuple[list[Sequence], list[int]]:
        """What has arrived since the last call, and which lanes were cancelled."""
        if not self._arrived and not self._cancelled:
            return [], []
        with self._lock:
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, []
            return arrived, cancelled

    def ended(self, sequence: Sequence, event: Finished | Failed, now_s: float) -> None:
        """An accepted request ended."""
        with self._lock:
            self.accepted -= 1
            self._turnover.ended(now_s)
            if not sequence.is_probe:
                self.counter.end(event)
