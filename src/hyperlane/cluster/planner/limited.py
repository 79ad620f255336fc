"""The cheapest layout where workers share limits: prices, and branch and bound over a search without them. Pure.

A shared limit gets a price: what its members use is added to the sum at that price, so that they use less. Any price
gives a bound that no layout within the limit is below (Lagrangian relaxation); what lies between is branched on.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hyperlane.cluster.planner.budget import Budget, Numbers, Shared, Windows
from hyperlane.cluster.planner.layout import Layout
from hyperlane.cluster.planner.ring_cost import Ground, RingCost

MAX_NODES = 16
"""Branches for one question; what is undecided then is answered with the best that was found."""

MAX_PRICES = 8
"""Prices tried for one limit; a handful finds the best one."""

CLOSE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """Make `cost` least, within all budgets.

    A layout that costs more than `most` is of no use; any that costs at most `enough` is as good as the cheapest.
    """

    cost: RingCost
    budgets: tuple[Budget, ...]
    most: float = np.inf
    enough: float = 0.0


Caps = tuple[Numbers, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Bound:
    """What prices tell of a branch: no layout in it is below `least`. `beyond` breaks a limit: what to exclude."""

    least: float
    beyond: Layout | None = None


class LimitedSearch:
    """Asks one ground, for layouts of `size` stages if given.

    `proved` is true as long as every answer was within `slack` (relative) of the least, and every refusal right but for
    layouts that cost more than 1 − `slack` of what was enough.
    """

    def __init__(self, ground: Ground, size: int | None = None, slack: float = 0.0) -> None:
        self._ground = ground
        self._size = size
        self._share = 1 - max(slack, CLOSE)
        self.proved = True

    def cheapest(self, question: Question) -> Layout | None:
        """The layout of least cost within all budgets and the limits shared in them; None if there is none of use.

        Where the stages of a layout break a limit together, every layout that keeps it has one of their workers below
        its part of the limit: so the search goes on once for each of them with that cap, lowest bound first.
        """
        asked, numbers = _Asked(self._ground, self._size, question), itertools.count()
        nodes: list[tuple[float, int, Layout, Caps]] = []

        def visit(caps: Caps) -> None:
            bound = asked.bound(_windows(question, caps))
            if bound.beyond is not None:
                heapq.heappush(nodes, (bound.least, next(numbers), bound.beyond, caps))

        visit(tuple(budget.caps for budget in question.budgets))
        while nodes and not asked.is_enough and nodes[0][0] < min(asked.value, question.most) * self._share:
            if next(numbers) > MAX_NODES:
                self.proved = False
                break
            _, _, layout, caps = heapq.heappop(nodes)
            for child in _branches(question, layout, caps):
                visit(child)
        return asked.best if asked.value <= question.most else None


class _Asked:
    """One question, and the best layout that was seen to keep every limit."""

    def __init__(self, ground: Ground, size: int | None, question: Question) -> None:
        self._ground, self._size, self._question = ground, size, question
        self._limits = [shared for budget in question.budgets for shared in budget.shared]
        self.best: Layout | None = None
        self.value = np.inf

    @property
    def is_enough(self) -> bool:
        """Whether the best is as good as the cheapest."""
        return self.value <= self._question.enough

    def bound(self, windows: Windows) -> _Bound:
        """The least that layouts within the windows can cost, as far as prices tell."""
        cost, paid = self._question.cost, 0.0
        layout = self._least(cost, windows)
        if layout is None:
            return _Bound(np.inf)
        least, beyond = cost.of(layout), None
        for _ in self._limits:
            limit = next((limit for limit in self._limits if not limit.is_kept(layout)), None)
            if limit is None or self.is_enough:
                break
            priced = self._price(limit, cost, layout, windows)
            if priced is None:
                return _Bound(np.inf)
            price, beyond, layout = priced
            cost = cost.priced(limit, price)
            paid += price * limit.limit
            least = max(least, cost.of(beyond) - paid)
        return _Bound(least, beyond)

    def _price(
        self, limit: Shared, cost: RingCost, beyond: Layout, windows: Windows
    ) -> tuple[float, Layout, Layout] | None:
        """The price at which the least sum is highest, with a layout beyond the limit and one within it.

        At that price both have the least sum. None: no layout in the windows keeps the limit.
        """
        within = self._least(cost.only(limit), windows)
        if within is None or not limit.is_kept(within):
            return None
        price = 0.0
        for _ in range(MAX_PRICES):
            price = (cost.of(within) - cost.of(beyond)) / (limit.used(beyond) - limit.used(within))
            priced = cost.priced(limit, price)
            found = self._least(priced, windows)
            if found is None or self.is_enough or priced.of(found) >= priced.of(beyond) * (1 - CLOSE):
                break
            if limit.is_kept(found):
                within = found
            else:
                beyond = found
        return price, beyond, within

    def _least(self, cost: RingCost, windows: Windows) -> Layout | None:
        found = self._ground.cheapest(cost, windows, self._size)
        if found is None:
            return None
        layout = found[1]
        if all(limit.is_kept(layout) for limit in self._limits) and self._question.cost.of(layout) < self.value:
            self.best, self.value = layout, self._question.cost.of(layout)
        return layout


def _windows(question: Question, caps: Caps) -> Windows:
    windows = [budget.use.within(cap) for budget, cap in zip(question.budgets, caps, strict=True)]
    for other in windows[1:]:
        windows[0] &= other
    return windows[0]


def _branches(question: Question, layout: Layout, caps: Caps) -> Iterator[Caps]:
    """The caps with one member after another held below its part of the limit that the layout breaks."""
    number, limit = next(
        (number, limit)
        for number, budget in enumerate(question.budgets)
        for limit in budget.shared
        if not limit.is_kept(layout)
    )
    used, weights = limit.by_worker(layout), dict(limit.weights)
    scale = limit.limit / sum(used.values())
    for worker, amount in used.items():
        lowered = caps[number].copy()
        lowered[worker] = min(lowered[worker], amount * scale / weights[worker])
        yield (*caps[:number], lowered, *caps[number + 1 :])
