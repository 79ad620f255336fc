"""Which tokens' KV entries lie in each slot, and where a new prompt can go on from them. Pure.

Knows no frame and no link: what it decides, the loop carries out. One for each pipeline, so for one model and one plan.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass

from hyperlane.head.lane import Lane

MIN_REUSE = 16
"""Fewer tokens in common are computed again: every chat begins with a few tokens of its template."""

COMPARED = 256
"""Tokens that are compared at a time."""


class Reuse(enum.StrEnum):
    """Which KV entries a prompt may go on from.

    ALL: all that are there. PROMPTS: those that computing the prompt from its beginning would make to the same bits;
    that leaves out answers, because a stage's arithmetic for one token is another than for several. OFF: none.
    """

    ALL = "all"
    PROMPTS = "prompts"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Move:
    """The first `count` entries of slot `source` are copied to slot `destination`."""

    source: int
    destination: int
    count: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a lane runs, and how many of its tokens need not be computed once `moves` were done, in order.

    `exact`: how many of them are such as `Reuse.PROMPTS` asks for.
    """

    slot: int
    count: int = 0
    exact: int = 0
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True, slots=True)
class _Held:
    """What a slot holds: entries of the first `lane.sent` of the tokens. Both go on growing while the lane runs."""

    tokens: list[int]
    lane: Lane


class Prefixes:
    """What each slot holds of the last lane that ran in it.

    Entries are counted from when their frame leaves: links are FIFO, so whatever leaves later finds them there.
    """

    def __init__(self, chunk: int, reuse: Reuse = Reuse.ALL) -> None:
        """`chunk`: prompts are cut at its multiples."""
        self._chunk = chunk
        self._reuse = reuse
        self._held: dict[int, _Held] = {}

    def hold(self, lane: Lane, tokens: list[int]) -> None:
        """From now on the lane's slot holds what it sends; `tokens` grows with it."""
        if self._reuse is not Reuse.OFF:
            self._held[lane.slot] = _Held(tokens, lane)

    def forget(self, slot: int) -> None:
        """What the slot holds cannot be used."""
        self._held.pop(slot, None)

    @property
    def is_used(self) -> bool:
        """Whether prompts go on from anything at all."""
        return self._reuse is not Reuse.OFF

    def longest(self, tokens: list[int]) -> int:
        """How many of these tokens some slot holds from the first on. A look from any thread: a hint, no promise."""
        held = list(self._held.values())
        return max((common(one.tokens, tokens, min(one.lane.sent, len(tokens))) for one in held), default=0)

    def place(self, tokens: list[int], free: Collection[int], *, exact: bool = False) -> Place | None:
        """Where a lane with these tokens should run, or None: another one is about to compute what both begin with.

        It is the lowest free slot, because slots that decode together are one run of an engine when they are
        neighbours. What that slot holds moves to the free slot that was used longest ago, unless the lane goes on from
        it; what another slot holds of the lane's tokens is copied to it. `exact`: as `Reuse.PROMPTS`.
        """
        slot = min(free)
        shared = {held: self._shared(what, tokens, exact=exact) for held, what in self._held.items()}
        best = max(shared, key=lambda held: (shared[held], held == slot), default=slot)
        count = shared.get(best, 0)
        if self._to_come(tokens, free) >= count + self._chunk:
            return None
        if count < MIN_REUSE:
            return Place(slot, moves=self._parked(slot, free, slot))
        source = self._held[best].lane
        is_continued = 2 * count >= source.sent
        moves = () if best == slot and is_continued else self._parked(slot, free, best)
        if best != slot:
            moves = (*moves, Move(best, slot, count))
            if best in free and is_continued:
                self.forget(best)
        return Place(slot, count, min(count, source.exact), moves)

    def _parked(self, slot: int, free: Collection[int], kept: int) -> tuple[Move, ...]:
        """Keep what a slot holds in a free one that was used before it."""
        held = self._held.get(slot)
        others = [other for other in free if other not in (slot, kept)]
        if held is None or held.lane.sent < MIN_REUSE or not others:
            return ()
        oldest = min(others, key=lambda other: (self._last_used(other), other))
        if self._last_used(oldest) >= held.lane.served:
            return ()
        self._held[oldest] = held
        return (Move(slot, oldest, held.lane.sent),)

    def _last_used(self, slot: int) -> int:
        held = self._held.get(slot)
        return -2 if held is None else held.lane.served

    def _shared(self, held: _Held, tokens: list[int], *, exact: bool) -> int:
        """Tokens that need not be computed; the last one always is, because its answer is asked for."""
        exact = exact or self._reuse is Reuse.PROMPTS
        count = common(held.tokens, tokens, min(held.lane.exact if exact else held.lane.sent, len(tokens) - 1))
        # A row of one token would be other arithmetic than what is computed from the beginning.
        alone = count > 0 and self._chunk > 1 and len(tokens) - count == 1
        return count - 1 if alone else count

    def _to_come(self, tokens: list[int], free: Collection[int]) -> int:
        """The longest beginning that will be there when the prompts which are being computed now have been."""
        running = [held for slot, held in self._held.items() if slot not in free and held.lane.sent < held.lane.prompt]
        return max((common(held.tokens, tokens, min(held.lane.prompt, len(tokens)) - 1) for held in running), default=0)


def common(one: list[int], other: list[int], limit: int) -> int:
    """How many of the first `limit` items are equal."""
    for start in range(0, limit, COMPARED):
        end = min(start + COMPARED, limit)
        if one[start:end] != other[start:end]:
            return start + next(i for i in range(end - start) if one[start + i] != other[start + i])
    return max(limit, 0)
