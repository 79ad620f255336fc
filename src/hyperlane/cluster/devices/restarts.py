"""When a process that ended is started again. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Sequence

DEATHS_WITHIN_S = 300.0
DEATHS = 10
"""A process that ended so often within that time is left: something is wrong that starting again does not mend."""

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0


def lately(deaths: Sequence[float], now_s: float) -> tuple[float, ...]:
    """Those deaths that still count."""
    return tuple(at_s for at_s in deaths if now_s - at_s < DEATHS_WITHIN_S)


def wait_s(deaths: Sequence[float], now_s: float) -> float | None:
    """Seconds until a process with these deaths is started again; None: it is left."""
    count = len(lately(deaths, now_s))
    if count >= DEATHS:
        return None
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * float(1 << max(0, count - 1)))
