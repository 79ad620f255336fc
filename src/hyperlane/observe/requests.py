"""`RequestCounter`: what becomes of requests, counted from any thread. Knows no head and no clock."""

from __future__ import annotations

import threading
from collections import Counter

from hyperlane.core import Endings, Failed, Finished, Refusals, RequestCounts
from hyperlane.errors import DeadlineExceeded, EngineFault, HyperlaneError, Overloaded


class RequestCounter:
    """Counts each request twice: when it is taken on, and when it ends; or once, when it is refused."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._admitted = 0
        self._ended: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    def admit(self) -> None:
        """A request was taken on."""
        with self._lock:
            self._admitted += 1

    def end(self, event: Finished | Failed) -> None:
        """One that was taken on had its last event."""
        with self._lock:
            self._ended[_ending(event)] += 1

    def refuse(self, error: HyperlaneError) -> None:
        """One was not taken on."""
        with self._lock:
            self._refused["queue_full" if isinstance(error, Overloaded) else "no_pipeline"] += 1

    def snapshot(self) -> RequestCounts:
        """All of it at one moment."""
        with self._lock:
            return RequestCounts(self._admitted, Endings(**self._ended), Refusals(**self._refused))


def _ending(event: Finished | Failed) -> str:
    """The field of `Endings` that counts it."""
    if isinstance(event, Finished):
        return event.reason.value
    if isinstance(event.error, DeadlineExceeded):
        return "deadline"
    return "fault" if isinstance(event.error, EngineFault) else "lost"
