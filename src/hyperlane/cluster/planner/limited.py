"""The cheapest layout where workers share limits: branch and bound over a search that knows no sharing. Pure."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hyperlane.cluster.planner.budget import Budget, Numbers, Shared
from hyperlane.cluster.planner.layout import Layout
from hyperlane.cluster.planner.ring_cost import Ground, RingCost

MAX_NODES = 400
"""Searches for one question; what is undecided then is decided by an even split of the shared limits."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """Make `cost` least, within all budgets."""

    cost: RingCost
    budgets: tuple[Budget, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A layout and its cost."""

    value: float
    layout: Layout


Caps = tuple[Numbers, ...]


class LimitedSearch:
    """Asks one ground, for layouts of `size` stages if given.

    `proved` is true as long as every answer was the best there is, and every refusal right.
    """

    def __init__(self, ground: Ground, size: int | None = None) -> None:
        self._ground = ground
        self._size = size
        self.proved = True

    def cheapest(self, question: Question) -> Answer | None:
        """The layout of least cost within all budgets and the limits shared in them; None if there is none.

        Where the stages of a found layout break a shared limit together, every layout that keeps it has one of their
        workers below its part of that limit: the search goes on once for each of them with that cap, cheapest first.
        """
        caps = tuple(budget.caps for budget in question.budgets)
        numbers = itertools.count()
        nodes = [(found.value, next(numbers), found, caps) for found in self._search(question, caps)]
        while nodes and next(numbers) < MAX_NODES:
            _, _, answer, caps = heapq.heappop(nodes)
            broken = _broken(question.budgets, answer.layout)
            if broken is None:
                return answer
            for child in _branches(*broken, answer.layout, caps):
                for found in self._search(question, child):
                    heapq.heappush(nodes, (found.value, next(numbers), found, child))
        if not nodes:
            return None
        self.proved = False
        return next(self._search(question, _even(question.budgets)), None)

    def _search(self, question: Question, caps: Caps) -> Iterator[Answer]:
        windows = [budget.use.within(cap) for budget, cap in zip(question.budgets, caps, strict=True)]
        for other in windows[1:]:
            windows[0] &= other
        found = self._ground.cheapest(question.cost, windows[0], self._size)
        if found is not None:
            yield Answer(*found)


def _broken(budgets: Sequence[Budget], layout: Layout) -> tuple[int, Shared] | None:
    for number, budget in enumerate(budgets):
        for shared in budget.shared:
            if not shared.is_kept(layout):
                return number, shared
    return None


def _branches(number: int, shared: Shared, layout: Layout, caps: Caps) -> Iterator[Caps]:
    """The caps with one member after another held below its part of the broken limit, in the budget of that number."""
    used, weights = shared.by_worker(layout), dict(shared.weights)
    scale = shared.limit / sum(used.values())
    for worker, amount in used.items():
        lowered = caps[number].copy()
        lowered[worker] = min(lowered[worker], amount * scale / weights[worker])
        yield (*caps[:number], lowered, *caps[number + 1 :])


def _even(budgets: Sequence[Budget]) -> Caps:
    """Caps that keep every shared limit: equal parts of it."""
    caps = []
    for budget in budgets:
        lowered = budget.caps.copy()
        for shared in budget.shared:
            for worker, weight in shared.weights:
                lowered[worker] = min(lowered[worker], shared.limit / len(shared.weights) / weight)
        caps.append(lowered)
    return tuple(caps)
