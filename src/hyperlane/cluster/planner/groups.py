"""Several pipelines of one model over different workers: who forms which, and what layers each has there. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hyperlane.cluster.planner.facts import Objective
from hyperlane.cluster.planner.layout import Layout, layout_of
from hyperlane.cluster.planner.optimum import Optimum
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.search import EXACT_WORKERS as SEARCHED_TOGETHER
from hyperlane.cluster.planner.search import best_layout

EXACT_WORKERS = 6
"""Up to so many workers every way to form groups is looked at; beyond, single workers are moved and exchanged."""

MOST_SETS = 12_000
"""Sets of workers within the groups that are searched, beyond `EXACT_WORKERS`: their number is what a search costs."""

Group = frozenset[int]
Grouping = tuple[Group, ...]


def best_groups(problem: Problem, count: int, objective: Objective, *, everyone: bool = False) -> list[Layout] | None:
    """`count` layouts of different workers that fit beside one another; None where none were found.

    By latency the slowest pipeline's token decides, then what all do together; by throughput the other way round. The
    pipelines are in the order of their first workers. `everyone`: each has all workers of its group, where they fit.
    """
    workers = len(problem.facts.workers)
    if not 1 <= count <= workers:
        return None
    search = _Search(problem, objective, everyone=everyone)
    if workers <= EXACT_WORKERS:
        return search.best_of(_partitions(list(range(workers)), count))
    return search.climb(dealt(list(map(float, problem.memory.caps)), count))


def dealt(rooms: Sequence[float], count: int) -> Grouping:
    """Workers in groups of about the same memory: the roomiest first, always to the group that has least."""
    groups: list[set[int]] = [set() for _ in range(count)]
    have = [0.0] * count
    for worker in sorted(range(len(rooms)), key=lambda worker: (-rooms[worker], worker)):
        poorest = min(range(count), key=lambda number: (have[number], len(groups[number]), number))
        groups[poorest].add(worker)
        have[poorest] += rooms[worker]
    return _ordered(groups)


class _Search:
    def __init__(self, problem: Problem, objective: Objective, *, everyone: bool) -> None:
        self._problem, self._objective, self._everyone = problem, objective, everyone
        self._known: dict[Group, Optimum | None] = {}
        self._sets = 0

    def best_of(self, groupings: Iterator[Grouping]) -> list[Layout] | None:
        best = min(groupings, key=self._cost, default=None)
        return None if best is None else self._layouts(best)

    def climb(self, grouping: Grouping) -> list[Layout] | None:
        """The first change of one or two workers' groups that is better, again and again."""
        cost, is_better = self._cost(grouping), True
        while is_better:
            is_better = False
            for other in _changed(grouping):
                if self._sets > MOST_SETS:
                    break
                if (other_cost := self._cost(other)) < cost:
                    grouping, cost, is_better = other, other_cost, True
                    break
        return self._layouts(grouping)

    def _layouts(self, grouping: Grouping) -> list[Layout] | None:
        found = [self._optimum(group) for group in grouping]
        layouts = [one.layout for one in found if one is not None]
        fits = len(layouts) == len(grouping) and self._problem.fits(*layouts)
        return layouts if fits else None

    def _cost(self, grouping: Grouping) -> tuple[float, ...]:
        """The less the better: pipelines that do not fit, whether the rest fit together, and then the speeds."""
        found = [self._optimum(group) for group in grouping]
        there = [one for one in found if one is not None]
        if not there:
            return (float(len(found)), 1.0, 0.0, 0.0)
        slowest = max(one.forecast.token_s for one in there)
        together = 1 / sum(one.forecast.many_rate for one in there)
        speeds = (slowest, together) if self._objective is Objective.LATENCY else (together, slowest)
        return (float(len(found) - len(there)), float(not self._problem.fits(*(o.layout for o in there))), *speeds)

    def _optimum(self, group: Group) -> Optimum | None:
        if group not in self._known:
            self._known[group] = self._searched(sorted(group))
            self._sets += 1 << min(len(group), SEARCHED_TOGETHER)
        return self._known[group]

    def _searched(self, workers: Sequence[int]) -> Optimum | None:
        names = [self._problem.facts.names[worker] for worker in workers]
        smaller = Problem(self._problem.facts.only(names), self._problem.workload)
        sizes = range(min(len(workers), smaller.layers), 0, -1) if self._everyone else (None,)
        tries = (best_layout(smaller, self._objective, size=size) for size in sizes)
        found = next(filter(None, tries), None)
        if found is None:
            return None
        shares = ((workers[share.worker], share.layers.first, share.layers.last) for share in found.layout)
        return Optimum(layout_of(shares), found.forecast, found.proved)


def _partitions(workers: Sequence[int], count: int) -> Iterator[Grouping]:
    """Every way to form so many groups that are not empty, each once."""
    if count == 1:
        yield (frozenset(workers),)
        return
    if len(workers) < count:
        return
    first, rest = workers[0], workers[1:]
    for grouping in _partitions(rest, count - 1):
        yield _ordered([{first}, *grouping])
    if len(rest) >= count:
        for grouping in _partitions(rest, count):
            for number, group in enumerate(grouping):
                yield _ordered([*grouping[:number], {first, *group}, *grouping[number + 1 :]])


def _changed(grouping: Grouping) -> Iterator[Grouping]:
    """Groupings in which one worker is elsewhere, or two have changed places."""
    for source, group in enumerate(grouping):
        for target, other in enumerate(grouping):
            if source == target:
                continue
            for worker in sorted(group):
                if len(group) > 1:
                    yield _with(grouping, {source: group - {worker}, target: other | {worker}})
                for guest in sorted(other) if source < target else ():
                    yield _with(grouping, {source: group - {worker} | {guest}, target: other - {guest} | {worker}})


def _with(grouping: Grouping, changes: dict[int, Group]) -> Grouping:
    return _ordered([changes.get(number, group) for number, group in enumerate(grouping)])


def _ordered(groups: Sequence[Group | set[int]]) -> Grouping:
    return tuple(sorted((frozenset(group) for group in groups), key=lambda group: min(group, default=-1)))
