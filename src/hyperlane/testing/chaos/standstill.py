"""When this process stood still: its machine was suspended, or somebody stopped it. Knows no cluster."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

TICK_S = 0.1
LATE_S = 1.0
"""A sleep that ends so much late was no sleep."""


class Standstills:
    """Notes them from `__enter__` to `__exit__`, in a thread of its own. Times are those of the monotonic clock."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="standstills", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def within(self, began_s: float, ended_s: float) -> float:
        """Seconds between two moments in which nothing here moved."""
        return overlap_s(self._spans, began_s, ended_s)

    @property
    def total_s(self) -> float:
        """All of them together."""
        return sum(ended_s - began_s for began_s, ended_s in self._spans)

    def _watch(self) -> None:
        last_s = time.monotonic()
        while not self._ended.wait(TICK_S):
            now_s = time.monotonic()
            if now_s - last_s > TICK_S + LATE_S:
                self._spans.append((last_s, now_s))
            last_s = now_s


def overlap_s(spans: list[tuple[float, float]], began_s: float, ended_s: float) -> float:
    """How much of a span others cover, which do not overlap each other."""
    return sum(max(0.0, min(ended_s, last_s) - max(began_s, first_s)) for first_s, last_s in spans)
