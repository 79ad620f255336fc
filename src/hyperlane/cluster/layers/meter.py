"""How far a transfer is: bytes by kind of source, and the rate of the last moments. Pure; time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from hyperlane.cluster.layers.dispatch import SourceKind

WINDOW_S = 3.0


@dataclass(frozen=True, slots=True)
class Moved:
    """`done` of `total` bytes are on disk, so many from each kind of source; `rate`: bytes a second, from others."""

    done: int
    total: int
    rate: float
    sources: tuple[tuple[str, int], ...]


class Meter:
    """Counts. Not for two threads at once."""

    def __init__(self) -> None:
        self._expected: dict[str, int] = {}
        self._by: dict[str, dict[SourceKind, int]] = {}
        self._recent: deque[tuple[float, int]] = deque()

    def knows(self, name: str) -> bool:
        """Whether a tensor is expected."""
        return name in self._expected

    def expect(self, name: str, nbytes: int) -> None:
        """A tensor counts from now on."""
        self._expected[name] = nbytes

    def add(self, name: str, kind: SourceKind, nbytes: int, now_s: float) -> None:
        """Bytes of a tensor have come from somewhere."""
        by = self._by.setdefault(name, {})
        by[kind] = by.get(kind, 0) + nbytes
        if kind is not SourceKind.CACHE:
            self._recent.append((now_s, nbytes))

    def forget(self, name: str) -> None:
        """What has come of a tensor was wrong."""
        self._by.pop(name, None)

    def read(self, now_s: float) -> Moved:
        """How far it is."""
        while self._recent and self._recent[0][0] < now_s - WINDOW_S:
            self._recent.popleft()
        span_s = max(now_s - self._recent[0][0], 0.1) if self._recent else 1.0
        counts = {kind: sum(by.get(kind, 0) for by in self._by.values()) for kind in SourceKind}
        return Moved(
            sum(counts.values()),
            sum(self._expected.values()),
            sum(nbytes for _, nbytes in self._recent) / span_s,
            tuple((kind.value, count) for kind, count in counts.items() if count),
        )
