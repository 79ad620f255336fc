"""The best layout for an objective, over whatever ground is searched. Pure.

Latency: the least time per token of one stream. Throughput: the least period in which every stream has a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from hyperlane.cluster.planner.facts import Objective
from hyperlane.cluster.planner.frame_cost import decode_shape
from hyperlane.cluster.planner.layout import Layout
from hyperlane.cluster.planner.limited import LimitedSearch, Question
from hyperlane.cluster.planner.predict import Forecast
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.ring_cost import Ground

TIE = 0.01
"""Predictions that differ by less are equal: measurements are not better than that. The second objective decides."""

SAME = 1e-6
"""Relative difference below which two sums of the same numbers count as one."""

LESS = 1 - 1e-9
NARROW = 2e-3
"""A bisection ends when its bounds are that near; then it asks whether anything at all below the upper one is left."""

SECOND = 1e-9
"""Weight of a chunk's time in the latency objective: decides between equals, changes nothing else."""


@dataclass(frozen=True, slots=True)
class Optimum:
    """A layout and what it will do. `proved`: none on the ground that was searched is better by the objective."""

    layout: Layout
    forecast: Forecast
    proved: bool


def optimum(
    problem: Problem, ground: Ground, objective: Objective, *, size: int | None = None, tie: float = TIE
) -> Optimum | None:
    """The best layout, with `size` stages if given; None when no layout fits.

    Latency: of all layouts within `tie` (relative) of the least time per token, the one that has the first token
    soonest, as far as a search by bisection for the evenest split sees them. Throughput: of all within `tie` of the
    least period, the one whose round is shortest.
    """
    search = _Search(problem, ground, size, tie)
    layout = search.fastest() if objective is Objective.LATENCY else search.widest()
    if layout is None:
        return None
    return Optimum(layout, problem.predictor.forecast(layout), search.proved)


class _Search:
    def __init__(self, problem: Problem, ground: Ground, size: int | None, tie: float) -> None:
        self._problem, self._tie = problem, max(tie, SAME)
        self._predictor = problem.predictor
        self._limited = LimitedSearch(ground, size, tie)

    @property
    def proved(self) -> bool:
        return self._limited.proved

    def fastest(self) -> Layout | None:
        """Least time per token; then, among equals, the evenest split of a prompt's work and so the first token."""
        one, chunk = self._problem.ring_of_one_token(), self._predictor.chunk_shape()
        cost = one.plus(self._problem.ring(chunk), SECOND)
        best = self._limited.cheapest(Question(cost, (self._problem.memory,)))
        if best is None:
            return None
        limit = one.of(best) * (1 + self._tie)
        loads = self._problem.loads([chunk])

        def within(seconds: float) -> Layout | None:
            even = self._problem.busy_at_most(loads, seconds, together=False)
            budgets = (self._problem.memory, even)
            found = self._limited.cheapest(Question(cost.without(loads.links > seconds), budgets, limit * (1 + SAME)))
            return found if found is not None and one.of(found) <= limit else None

        busiest_s = partial(self._problem.busiest_s, loads)
        equals = [best, *_ever_less(within, busiest_s, busiest_s(best), 0.0)]
        return min(equals, key=lambda layout: (self._predictor.ttft_s(layout), len(layout)))

    def widest(self) -> Layout | None:
        """Least period over all numbers of groups in flight; then, among equals, the shortest round."""
        one = self._problem.ring_of_one_token()
        best = start = self._limited.cheapest(Question(one, (self._problem.memory,)))
        if best is None or start is None:
            return None
        splits = self._predictor.splits(self._problem.workload.streams)
        splits.sort(key=lambda sizes: self._predictor.period_s(start, sizes))
        chosen = splits[0]
        for sizes in splits:
            within = partial(self._within, sizes, is_any_enough=True)
            period_s = partial(self._predictor.period_s, groups=sizes)
            for layout in _ever_less(within, period_s, self._predictor.period_s(best, chosen), one.of(start)):
                best, chosen = layout, sizes
        limit = self._predictor.period_s(best, chosen) * (1 + self._tie)
        return self._within(chosen, limit, is_any_enough=False) or best

    def _within(self, sizes: tuple[int, ...], seconds: float, *, is_any_enough: bool) -> Layout | None:
        """The layout with the shortest round of the largest group, if these groups' period is at most so long."""
        if self._predictor.head_s(sizes) > seconds:
            return None
        ring = self._problem.ring(decode_shape(max(sizes)))
        loads = self._problem.loads([decode_shape(rows) for rows in sizes])
        budgets = (self._problem.memory, self._problem.busy_at_most(loads, seconds, together=True))
        enough = seconds if is_any_enough else 0.0
        return self._limited.cheapest(Question(ring.without(loads.links > seconds), budgets, seconds, enough))


def _ever_less(
    within: Callable[[float], Layout | None], measure: Callable[[Layout], float], high: float, low: float
) -> Iterator[Layout]:
    """Layouts of ever smaller measure below `high`, by bisection; no layout is below the last one's, nor below `low`.

    `within(x)` answers with a layout whose measure is at most x, None if there is none.
    """
    is_last = True  # at first too: mostly there is nothing below
    while True:
        found = within(high * LESS if is_last else (low + high) / 2)
        if found is not None:
            high = measure(found)
            yield found
        elif is_last:
            return
        else:
            low = (low + high) / 2
        is_last = high - low <= NARROW * high
