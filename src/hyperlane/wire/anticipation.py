"""When the next frame will come, from how long the last ones took: who waits can be awake just before. Knows no socket.

An idle processor takes long to be woken, and finds its caches full of what the neighbours computed meanwhile: with 10
ms of work between frames a blocked receiver in a virtual machine goes on 200 µs after the sender's call, and what it
then does takes several times longer than in a loop (`benchmarks/wakeup.py`). Decode steps of one stream take nearly
the same time each, so the last part of a wait is spent looking for the frame and rehearsing what it will take.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

REMEMBERED = 16
"""Waits that a window is made of."""

FIRST_AFTER = 6
"""How many waits must be known before anything is expected."""

LEAD_S = 0.5e-3
"""Watching begins so long before the earliest usual arrival: longer than a timer is late."""

LONGEST_WATCH_S = 2e-3
"""What one frame is worth of the processor's time, beside the lead."""

LONGEST_WAIT_S = 1.0
"""A frame that takes longer than this does not mind that its receiver must be woken."""

TICK_S = 1e-3
"""Sleeps end at whole milliseconds: what poll counts in."""

REHEARSE_EVERY_S = 40e-6
"""What others compute meanwhile pushes a rehearsal out of shared caches again."""

TAKEN_S = 0.5e-3
"""A processor that was offered and came back after so long was wanted by others."""

STRIKES = 12
"""How often that must happen in `REMEMBERED` frames: a health check or a heartbeat may take as long."""

FRAMES_WITHOUT = 16
"""For how many frames nobody watches once the processor was wanted by others."""

step_aside: Callable[[], None] = getattr(os, "sched_yield", lambda: None)
"""Let another process run that waits for this processor.

Those that looked for a frame side by side may sit on one processor while another has just become idle: the system
leaves what ran a moment ago where its caches are. So who has sent a frame steps aside once before it goes on; else its
receiver waits until the sender has nothing more to do.
"""


class Anticipation:
    """The waits for the last frames of one link, and when to look for the next. Used by one thread."""

    __slots__ = ("_at", "_pause", "_strike", "_waits")

    def __init__(self) -> None:
        self._waits: list[float] = []
        self._at = 0
        self._pause = 0
        self._strike = 0

    def note(self, wait_s: float) -> None:
        """A frame came after so many seconds."""
        if len(self._waits) < REMEMBERED:
            self._waits.append(wait_s)
        else:
            self._waits[self._at] = wait_s
            self._at = (self._at + 1) % REMEMBERED
        self._pause = max(0, self._pause - 1)
        self._strike = max(0, self._strike - 1)

    def taken(self) -> None:
        """Others want the processor; once that is certain, nothing is expected for a while."""
        self._strike += REMEMBERED
        if self._strike > (STRIKES - 1) * REMEMBERED:
            self._pause, self._strike = FRAMES_WITHOUT, 0

    def window(self) -> tuple[float, float] | None:
        """From and until how many seconds of waiting to look for the frame; None: sleep until it comes.

        The window that most of the last waits fell into, if those were at least half of them.
        """
        waits = sorted(self._waits)
        if self._pause or len(waits) < FIRST_AFTER:
            return None
        first = most = last = 0
        for index, wait_s in enumerate(waits):
            while wait_s - waits[first] > LONGEST_WATCH_S:
                first += 1
            if index - first >= most:
                most, last = index - first, index
        if 2 * (most + 1) < len(waits) or waits[last] > LONGEST_WAIT_S:
            return None
        return max(0.0, waits[last - most] - LEAD_S), waits[last] + LEAD_S


def await_frame(
    expected: Anticipation,
    ready: Callable[[float | None], T],
    since_s: float,
    rehearse: Callable[[], object],
    timeout_s: float | None = None,
) -> T:
    """What `ready` returns once it is not empty, or at the end of the time (None: it has none).

    `ready` is called with seconds to sleep at most, 0 to look, None for ever. `since_s`: when the wait began, on
    `time.perf_counter`. `rehearse` does to no effect what the frame will take.
    """
    window = expected.window()
    now_s = time.perf_counter()
    if window is None or (timeout_s is not None and now_s + timeout_s < since_s + window[1]):
        return ready(timeout_s)
    rest_s = None if timeout_s is None else now_s + timeout_s - since_s - window[1]
    sleep_s = (since_s + window[0] - now_s) // TICK_S * TICK_S
    if sleep_s > 0 and (found := ready(sleep_s)):
        return found
    rest_of_tick_s = since_s + window[0] - time.perf_counter()
    if rest_of_tick_s > 0:
        time.sleep(rest_of_tick_s)
    until_s, again_s = since_s + window[1], 0.0
    while not (found := ready(0.0)):
        now_s = time.perf_counter()
        if now_s > until_s:
            return ready(rest_s)
        if now_s > again_s:
            rehearse()
            again_s = time.perf_counter() + REHEARSE_EVERY_S
            continue
        step_aside()
        if time.perf_counter() - now_s > TAKEN_S:
            expected.taken()
            return ready(rest_s)
    return found
