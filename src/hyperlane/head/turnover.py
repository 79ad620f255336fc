"""How fast places of a queue become free, and when to come back for one. Pure; times are arguments, in seconds."""

from __future__ import annotations

from collections import deque

REMEMBERED = 32
"""Ends that the rate is taken from."""

LEAST_S, MOST_S = 1.0, 60.0
"""What a client is told. Official clients take no notice of more than a minute."""


class Turnover:
    """The rate at which requests end while some are unfinished.

    Each client that is refused after the same end is told to come a place later, so that they do not all come back
    together and all but one of them in vain.
    """

    def __init__(self) -> None:
        self._since_s = 0.0
        self._ends: deque[float] = deque(maxlen=REMEMBERED)
        self._known_s = 0.0
        self._refused = 0

    def began(self, now_s: float) -> None:
        """A request came while there was no other: the time before it says nothing of how fast they are served."""
        if self._ends:
            self._known_s = self._interval_s(self._ends[-1])
        self._since_s = now_s
        self._ends.clear()
        self._refused = 0

    def ended(self, now_s: float) -> None:
        """A request ended."""
        if len(self._ends) == REMEMBERED:
            self._since_s = self._ends[0]
        self._ends.append(now_s)
        self._refused = 0

    def retry_after_s(self, now_s: float) -> float:
        """One was refused: when there is a place for it, by the rate of late."""
        self._refused += 1
        return min(MOST_S, max(LEAST_S, self._refused * self._interval_s(now_s)))

    def _interval_s(self, now_s: float) -> float:
        """Seconds between two ends. Before the first one of a busy time: as in the last, or what has passed already."""
        elapsed_s = now_s - self._since_s
        return elapsed_s / len(self._ends) if self._ends else max(elapsed_s, self._known_s)
