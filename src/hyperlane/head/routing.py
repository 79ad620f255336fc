"""Which of several pipelines a request goes to: by load, and by what of its prompt their slots hold. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyperlane.head.prefixes import MIN_REUSE


@dataclass(frozen=True, slots=True)
class Route:
    """One pipeline at the moment of the choice.

    `serves`: it has a running ring. `unfinished`: requests that it has, of which `slots` may run. `rate`: tokens per
    second that it is expected to do, in any unit that all have in common. `held`: tokens of the request's prompt that
    it holds, or is about to. `accepts`: its queue has a place.
    """

    number: int
    serves: bool
    unfinished: int
    slots: int
    rate: float = 1.0
    held: int = 0
    accepts: bool = True

    @property
    def pressure(self) -> float:
        """How busy it would be with one request more."""
        return (self.unfinished + 1) / self.rate

    @property
    def has_room(self) -> bool:
        """Whether a slot is free."""
        return self.unfinished < self.slots


def choose(routes: Sequence[Route], prompt_tokens: int) -> Route:
    """Where a request goes: to the least busy pipeline, or to one that holds its beginning and is not much busier.

    Those that serve come first, and of them those with a free slot. A pipeline that holds all of the prompt may be
    twice as busy as the least busy one, with a smaller share by that much less: so much computing is worth waiting for.
    """
    open_ones = [route for route in routes if route.serves] or list(routes)
    open_ones = [route for route in open_ones if route.has_room] or open_ones
    least = min(open_ones, key=lambda route: (route.pressure, route.number))
    holder = max(open_ones, key=lambda route: (route.held, -route.pressure, -route.number))
    if holder.held < max(MIN_REUSE, least.held + 1):
        return least
    share = (holder.held - least.held) / max(1, prompt_tokens)
    return holder if holder.pressure <= least.pressure * (1 + share) else least


def common_unit(rates: Sequence[float | None]) -> list[float]:
    """Rates that can be compared: as they are if all are known, else all the same."""
    known = [rate for rate in rates if rate]
    return known if len(known) == len(rates) else [1.0] * len(rates)
