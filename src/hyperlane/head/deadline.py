"""How long a step may take before its pipeline counts as lost: from the steps that were measured. Knows no clock."""

from __future__ import annotations

from collections import deque

LEAST_S = 0.25
"""No step is given up sooner: a busy machine may well stand still for a moment."""

MOST_LEAST_S = 16.0
FORGOTTEN_AFTER_S = 600.0
"""After a step that was given up the next pipelines have twice the least time, until one has held out so long."""

FACTOR = 8.0
WINDOW = 200
"""Steps of one size that are remembered."""

ENOUGH = 16
"""So many steps of a size tell how long they take."""

UNMEASURED_S = 5.0
"""Of a size that was not seen often enough; its first steps may prepare what later ones use."""

FIRST_S = 60.0
"""Before any size was: weights may have to be read from a slow disk."""


class StepDeadline:
    """Eight times the 99th percentile of the measured steps of a size, and at least `least_s`. Seconds."""

    __slots__ = ("_least_s", "_limits", "_notes", "_seen")

    def __init__(self, least_s: float = LEAST_S) -> None:
        self._least_s = least_s
        self._seen: dict[int, deque[float]] = {}
        self._limits: dict[int, float] = {}
        self._notes = 0

    def note(self, tokens: int, took_s: float) -> None:
        """A step of so many tokens came back, so long after it left or the one before it came back."""
        size = _size(tokens)
        seen = self._seen.get(size)
        if seen is None:
            seen = self._seen[size] = deque(maxlen=WINDOW)
        seen.append(took_s)
        self._notes += 1
        if self._notes % ENOUGH == 0 or FACTOR * took_s > self._limits.get(size, 0.0):
            self._limits.clear()

    def of(self, tokens: int) -> float:
        """How long a step of so many tokens may take."""
        size = _size(tokens)
        limit = self._limits.get(size)
        return self._limit(size) if limit is None else limit

    def _limit(self, size: int) -> float:
        seen = self._seen.get(size, ())
        if len(seen) < ENOUGH:
            measured = any(len(other) >= ENOUGH for other in self._seen.values())
            return max(self._least_s, UNMEASURED_S if measured else FIRST_S)
        ranked = sorted(seen)
        limit = max(self._least_s, FACTOR * ranked[-(-99 * len(ranked) // 100) - 1])
        self._limits[size] = limit
        return limit


def _size(tokens: int) -> int:
    """Small batches each by themselves, chunks of prompts by powers of two."""
    return tokens if tokens <= 8 else 8 + tokens.bit_length()


def least_after(least_s: float, lasted_s: float, *, overdue: bool) -> float:
    """The least time for steps of the next pipeline, after one that lasted so long and ended by a step or not."""
    if lasted_s >= FORGOTTEN_AFTER_S:
        least_s = LEAST_S
    return min(2 * least_s, MOST_LEAST_S) if overdue else least_s
