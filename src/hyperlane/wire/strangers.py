"""How often a host may fail at a door before it is not let near it for a while. Pure: the clock is an argument."""

from __future__ import annotations

from collections import OrderedDict

BURST = 20
"""Failures that a host may have at once: a worker that is started again and again while it is set up has few."""

FORGIVEN_PER_S = 0.5
MAX_HOSTS = 1024
"""Hosts remembered; beyond that the one that failed least recently is forgotten."""


class Strangers:
    """Failures by host, each forgiven after a while. Not thread-safe."""

    def __init__(self, burst: int = BURST, forgiven_per_s: float = FORGIVEN_PER_S) -> None:
        self._burst = burst
        self._rate = forgiven_per_s
        self._failures: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def failed(self, host: str, now_s: float) -> bool:
        """Count one more; True when the host is barred from now on and was not before."""
        before = self._count(host, now_s)
        self._failures[host] = (before + 1, now_s)
        self._failures.move_to_end(host)
        if len(self._failures) > MAX_HOSTS:
            self._failures.popitem(last=False)
        return before < self._burst <= before + 1

    def barred(self, host: str, now_s: float) -> bool:
        """Whether the host has failed too often lately."""
        return self._count(host, now_s) >= self._burst

    def _count(self, host: str, now_s: float) -> float:
        count, at_s = self._failures.get(host, (0.0, now_s))
        return max(0.0, count - (now_s - at_s) * self._rate)
