"""The best layout of any cluster: exact where every layout can be searched, by steps of improvement beyond. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from hyperlane.cluster.planner.chain import OneOrder
from hyperlane.cluster.planner.facts import Objective
from hyperlane.cluster.planner.optimum import SAME, TIE, Optimum, optimum
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.subsets import AllLayouts

EXACT_WORKERS = 12
"""Up to so many workers every layout is searched."""

TOGETHER = 9
"""Beyond that: how many workers are searched exactly at a time."""


def best_layout(problem: Problem, objective: Objective, *, size: int | None = None, tie: float = TIE) -> Optimum | None:
    """The best layout, with `size` stages if given; None when none fits. `proved` says whether it is the best there is.

    Beyond `EXACT_WORKERS` the `TOGETHER` workers of least cost a layer are searched exactly, then those of the best
    layout so far with others in turn, until no turn betters it. Where so few do not hold the model, an order of more is
    bettered by leaving out, adding, replacing and exchanging single workers, each with the best split of the layers.
    """
    count = len(problem.facts.workers)
    if count <= EXACT_WORKERS:
        found = optimum(problem, AllLayouts(range(count)), objective, size=size, tie=tie)
        return found and _in_given_order(problem, found, tie)
    found = _Beyond(problem, objective, size, tie).best()
    return found and _in_given_order(problem, Optimum(found.layout, found.forecast, proved=False), tie)


def _in_given_order(problem: Problem, found: Optimum, tie: float) -> Optimum:
    """The same split over the same workers in the order in which they were given, where that is as good.

    They are alike then, and whoever named them expects their order.
    """
    workers = sorted(share.worker for share in found.layout)
    layout = tuple(replace(share, worker=worker) for share, worker in zip(found.layout, workers, strict=True))
    if layout == found.layout or not problem.fits(layout):
        return found
    before, after = found.forecast, problem.predictor.forecast(layout)
    pairs = ((before.token_s, after.token_s), (before.period_s, after.period_s), (before.ttft_s, after.ttft_s))
    is_as_good = all(other <= one * (1 + max(tie, SAME)) for one, other in pairs)
    return Optimum(layout, after, found.proved) if is_as_good else found


class _Beyond:
    def __init__(self, problem: Problem, objective: Objective, size: int | None, tie: float) -> None:
        self._problem, self._objective, self._size, self._tie = problem, objective, size, tie
        self._ranked = ranked(problem)

    def best(self) -> Optimum | None:
        found = self._among(self._ranked[:TOGETHER])
        if found is None:
            found = self._first_that_fits()
            # A layout of a size that was asked for is shown beside the best one: it need not be polished.
            return found if found is None or self._size else self._better_orders(found)
        return self._better_company(found)

    def _among(self, workers: Iterable[int]) -> Optimum | None:
        ground = AllLayouts(sorted(workers))
        return optimum(self._problem, ground, self._objective, size=self._size, tie=self._tie)

    def _better_company(self, found: Optimum) -> Optimum:
        """Let the others join the best layout's workers, a few at a time, until no company betters it."""
        turn_is_due = True
        while turn_is_due:
            turn_is_due = False
            used = [share.worker for share in found.layout]
            others = [worker for worker in self._ranked if worker not in used]
            room = max(1, TOGETHER - len(used))
            for start in range(0, len(others), room):
                other = self._among([*used, *others[start : start + room]])
                if other is not None and self._value(other) < self._value(found) * (1 - self._tie / 2):
                    found, turn_is_due = other, True
                    break
        return found

    # --- more workers than are searched together ---------------------------------------------------------------

    def _in_order(self, order: Sequence[int]) -> Optimum | None:
        return optimum(self._problem, OneOrder(order), self._objective, size=self._size, tie=self._tie)

    def _first_that_fits(self) -> Optimum | None:
        """The fewest workers that hold the model in one of some orders: the best workers, or those of most memory."""
        caps = self._problem.memory.caps
        roomy = sorted(self._ranked, key=lambda worker: -caps[worker])
        sizes = [self._size] if self._size else range(TOGETHER + 1, len(self._ranked) + 1)
        for size in sizes:
            for ranking in (self._ranked, roomy):
                found = next(filter(None, map(self._in_order, self._orders(ranking[:size]))), None)
                if found is not None:
                    return found
        return None

    def _orders(self, workers: Sequence[int]) -> Iterator[Sequence[int]]:
        """Each followed by the nearest; the roomiest at the two ends, which hold more than layers; as given."""
        caps = self._problem.memory.caps
        nearest = self._nearest(workers)
        ends = sorted(nearest, key=lambda worker: -caps[worker])[:2]
        roomy_ends = [ends[0], *(worker for worker in nearest if worker not in ends), *ends[1:]]
        yield from (nearest, roomy_ends, roomy_ends[::-1], workers)

    def _nearest(self, workers: Sequence[int]) -> list[int]:
        links = self._problem.ring_of_one_token().links
        left, order = list(workers), [len(links) - 1]
        while left:
            order.append(min(left, key=lambda worker: links[order[-1], worker]))
            left.remove(order[-1])
        return order[1:]

    def _better_orders(self, found: Optimum) -> Optimum:
        """The first change of a single place that betters it, again and again."""
        while True:
            orders = _changed([share.worker for share in found.layout], self._ranked)
            others = (self._in_order(order) for order in orders)
            better = (other for other in others if other is not None and self._value(other) < self._value(found))
            following = next(better, None)
            if following is None:
                return found
            found = following

    def _value(self, found: Optimum) -> float:
        is_latency = self._objective is Objective.LATENCY
        return found.forecast.token_s if is_latency else found.forecast.period_s


def ranked(problem: Problem) -> list[int]:
    """Workers by what a layer costs on them, the hop to the next worker shared among the layers that they can hold.

    Those that cannot hold a single layer are left out.
    """
    ring, memory = problem.ring_of_one_token(), problem.memory
    held = np.maximum(1, memory.use.within(memory.caps).first_end)
    hops = np.where(np.isfinite(ring.links), ring.links, np.nan)[:-1]
    least = np.array([np.nanmin(row) if not np.isnan(row).all() else np.inf for row in hops])
    layer = ring.stages.layers[:, 1] - ring.stages.layers[:, 0]
    cost = layer + (ring.stages.stage + least) / held
    smallest = np.diff(memory.use.layers, axis=1).min(axis=1) + memory.use.stage
    return [int(worker) for worker in np.argsort(cost, kind="stable") if smallest[worker] <= memory.caps[worker]]


def _changed(order: Sequence[int], workers: Sequence[int]) -> Iterator[list[int]]:
    """Orders that differ from one in a single worker or place."""
    outside = [worker for worker in workers if worker not in order]
    places = range(len(order))
    yield from ([*order, worker] for worker in outside)
    for place in places:
        if len(order) > 1:
            yield [*order[:place], *order[place + 1 :]]
        for worker in outside:
            yield [*order[:place], worker, *order[place + 1 :]]
            yield [*order[:place], worker, *order[place:]]
    for first in places:
        for second in places[first + 1 :]:
            swapped = list(order)
            swapped[first], swapped[second] = swapped[second], swapped[first]
            yield swapped
            yield [*order[:first], *order[first:second][::-1], *order[second:]]
