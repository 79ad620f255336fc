"""The plan to go to from a running one: of all that are equally good, the one that moves least. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from hyperlane.cluster.planner.budget import Use
from hyperlane.cluster.planner.facts import Objective
from hyperlane.cluster.planner.frame_cost import decode_shape
from hyperlane.cluster.planner.layout import Layout, Share
from hyperlane.cluster.planner.limited import LimitedSearch, Question
from hyperlane.cluster.planner.moving import Stage
from hyperlane.cluster.planner.optimum import Optimum
from hyperlane.cluster.planner.predict import group_sizes
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.ring_cost import RingCost
from hyperlane.cluster.planner.search import EXACT_WORKERS, TOGETHER, ranked
from hyperlane.cluster.planner.subsets import AllLayouts
from hyperlane.cluster.planner.trade import Trade

EQUAL = 0.02
"""Plans whose predictions differ by less are equal."""

PRICES = 12
"""Prices of a moved layer that are tried."""

FIRST = 1e-9
"""Weight of speed where moves are all that counts."""


def fewest_moves(problem: Problem, objective: Objective, running: Sequence[Stage], best: Optimum) -> Layout:
    """Of the layouts within `EQUAL` of the best, the one that loads the fewest layers onto workers without them.

    The embedding and the output projection count as the layers whose bytes they have. Prices on every layer that moves
    find orders of workers to look at; in each of them, and in the running order, every split is considered.
    """
    sizes = (1,) if objective is Objective.LATENCY else group_sizes(best.forecast.streams, best.forecast.groups)
    period_s = partial(problem.predictor.period_s, groups=sizes)
    limit = period_s(best.layout) * (1 + EQUAL)
    ring, moves = problem.ring(decode_shape(max(sizes))), moves_of(problem, running)
    loads = problem.loads([decode_shape(rows) for rows in sizes])
    allowed = partial(RingCost.without, links=loads.links > limit)
    budgets = (problem.memory, problem.busy_at_most(loads, limit, together=True))

    def is_equal(layout: Layout) -> bool:
        return problem.fits(layout) and period_s(layout) <= limit

    search = LimitedSearch(_ground(problem, running, best.layout))
    seen = [best.layout]
    again = layout_again(problem, running)
    if again is not None:
        seen.append(again)
    seen += _seen(lambda cost: search.cheapest(Question(allowed(cost), budgets)), ring, moves, best.layout, is_equal)
    windows = budgets[0].use.within(budgets[0].caps) & budgets[1].use.within(budgets[1].caps)
    for order in {tuple(share.worker for share in layout) for layout in seen}:
        splits = Trade(order, allowed(ring), moves.stages, windows).splits()
        seen += [layout for layout in [next(filter(is_equal, splits), None)] if layout is not None]
    return min(filter(is_equal, seen), key=lambda layout: (moves.of(layout), period_s(layout)))


def _seen(
    cheapest: Callable[[RingCost], Layout | None],
    ring: RingCost,
    moves: RingCost,
    good: Layout,
    is_equal: Callable[[Layout], bool],
) -> Iterator[Layout]:
    """Layouts that some price of a moved layer makes the cheapest, nearer and nearer to the limit."""
    slow = cheapest(moves.plus(ring, FIRST))
    for _ in range(PRICES):
        if slow is None:
            return
        yield slow
        spared = moves.of(good) - moves.of(slow)
        if is_equal(slow) or spared <= 0:
            return
        found = cheapest(ring.plus(moves, (ring.of(slow) - ring.of(good)) / spared))
        if found is None or found in (slow, good):
            return
        yield found
        good, slow = (found, slow) if is_equal(found) else (good, found)


def moves_of(problem: Problem, running: Sequence[Stage]) -> RingCost:
    """What each stage would have to load, in layers, as a sum over the ring."""
    cost, layers, names = problem.workload.cost, problem.layers, problem.facts.names
    held = {stage.worker: stage.layers for stage in running}
    new = np.ones((len(names), layers))
    for number, name in enumerate(names):
        if name in held:
            new[number, held[name].first : held[name].last] = 0
    layer_bytes = max(1.0, float(np.mean(cost.layer_weights)))
    is_first = np.array([bool(running) and name == running[0].worker for name in names])
    is_last = np.array([bool(running) and name == running[-1].worker for name in names])
    use = Use(
        np.hstack((np.zeros((len(new), 1)), np.cumsum(new, axis=1))),
        np.zeros(len(new)),
        np.where(is_first, 0.0, cost.embedding / layer_bytes),
        np.where(is_last, 0.0, cost.output / layer_bytes),
    )
    links = problem.ring_of_one_token().links
    return RingCost(use, np.where(np.isfinite(links), 0.0, np.inf))


def layout_again(problem: Problem, running: Sequence[Stage]) -> Layout | None:
    """A running plan as a layout of this cluster; None if a worker is gone, or it would not fit now."""
    numbers = {name: number for number, name in enumerate(problem.facts.names)}
    if not running or any(stage.worker not in numbers for stage in running):
        return None
    layout = tuple(Share(numbers[stage.worker], stage.layers) for stage in running)
    return layout if problem.fits(layout) else None


def _ground(problem: Problem, running: Sequence[Stage], best: Layout) -> AllLayouts:
    """All workers where every layout can be searched, else those of both plans and the best of the others."""
    names = problem.facts.names
    if len(names) <= EXACT_WORKERS:
        return AllLayouts(range(len(names)))
    running_names = {stage.worker for stage in running}
    kept = [share.worker for share in best]
    kept += [n for n, name in enumerate(names) if name in running_names and n not in kept]
    kept += [worker for worker in ranked(problem) if worker not in kept][: max(0, TOGETHER - len(kept))]
    return AllLayouts(sorted(kept[:EXACT_WORKERS]))
