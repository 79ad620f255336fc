"""A ring of FIFO servers as a discrete-event simulation: what the predictions are held against. Pure; own clock.

Knows no formula of `predict`. Frames stay in order; a server takes the next frame when it is done with the one before.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from hyperlane.cluster.planner.frame_cost import Round

Frame = TypeVar("Frame")


@dataclass(frozen=True, slots=True, eq=False)
class _Passage(Generic[Frame]):
    """A frame on its way."""

    frame: Frame
    cost: Round


@dataclass(slots=True)
class _Server(Generic[Frame]):
    waiting: deque[_Passage[Frame]] = field(default_factory=deque)
    is_busy: bool = False


def simulate(
    frames: Callable[[float, Frame | None], Iterable[Frame]], cost: Callable[[Frame], Round], until_s: float
) -> None:
    """Run a ring from time 0 until it is empty, or until `until_s`.

    Args:
        frames: called with the time and the frame that came back (at time 0 with None); what it returns is sent next.
        cost: how long each server is busy with a frame, and how long it is under way after each.
        until_s: simulated seconds.

    """
    events: list[tuple[float, int, int, _Passage[Frame], bool]] = []
    order = itertools.count()
    servers: dict[int, _Server[Frame]] = {}

    def arrive(now: float, place: int, passage: _Passage[Frame]) -> None:
        if place == len(passage.cost.busy):
            send(now, passage.frame)
            return
        server = servers.setdefault(place, _Server())
        server.waiting.append(passage)
        start(now, place, server)

    def start(now: float, place: int, server: _Server[Frame]) -> None:
        if server.waiting and not server.is_busy:
            passage = server.waiting.popleft()
            server.is_busy = True
            heapq.heappush(events, (now + passage.cost.busy[place], next(order), place, passage, True))

    def send(now: float, back: Frame | None) -> None:
        for frame in frames(now, back):
            arrive(now, 0, _Passage(frame, cost(frame)))

    send(0.0, None)
    while events and events[0][0] <= until_s:
        now, _, place, passage, is_done = heapq.heappop(events)
        if not is_done:
            arrive(now, place, passage)
            continue
        heapq.heappush(events, (now + passage.cost.delays[place], next(order), place + 1, passage, False))
        servers[place].is_busy = False
        start(now, place, servers[place])
