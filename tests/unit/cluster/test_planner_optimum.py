"""The search against brute force: every subset, order and split of small clusters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperlane.cluster.planner.facts import HeadCost, Objective
from hyperlane.cluster.planner.layout import Layout, layout_of
from hyperlane.cluster.planner.optimum import optimum
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.subsets import AllLayouts
from hyperlane.core import ElementType
from hyperlane.testing.clusters import GIB, Machine, made_up_cluster, made_up_workload

EXACT = 1e-6
calm = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

small = st.integers(0, 6)


@st.composite
def machines(draw, count: int) -> list[Machine]:
    shared = draw(st.booleans())
    return [
        Machine(
            layer_ms=draw(st.integers(1, 5)),
            free=draw(st.integers(0, 9)) * GIB,
            row_ms=draw(st.integers(0, 3)) / 4,
            step_ms=draw(small) / 2,
            embed_ms=draw(small) / 2,
            project_ms=draw(small),
            pool="pool" if shared and number < 2 else "",
            machine="host" if shared and number < 2 else "",
            threads=draw(st.integers(1, 3)),
            cores=2,
        )
        for number in range(count)
    ]


@st.composite
def problems(draw, most_workers: int = 4) -> Problem:
    count = draw(st.integers(1, most_workers))
    distances = [[draw(st.integers(0, 8)) / 2 for _ in range(count + 1)] for _ in range(count + 1)]
    head = HeadCost(draw(small) / 4e3, draw(small) / 8e3, draw(small) / 8e3)
    pipes = draw(st.sampled_from([0.05, 0.5, 1e6]))
    facts = made_up_cluster(draw(machines(count)), rtt_ms=distances, mb_per_s=pipes, head=head)
    layers = draw(st.lists(st.integers(1, 3), min_size=1, max_size=8 if count < 4 else 6))
    workload = made_up_workload(
        [size * GIB // 2 for size in layers],
        kv=draw(st.integers(0, 1)) * GIB // 4,
        workspace=draw(st.integers(0, 1)) * GIB // 2,
        embedding=draw(st.integers(0, 3)) * GIB // 2,
        output=draw(st.integers(0, 3)) * GIB // 2,
        streams=draw(st.integers(1, 6)),
        prompt_tokens=draw(st.sampled_from([32, 128, 256])),
        frames_in_flight=draw(st.sampled_from([None, 1, 2])),
        min_group_rows=draw(st.integers(1, 2)),
    )
    return Problem(facts, workload)


def every_layout(problem: Problem) -> Iterator[Layout]:
    """Every layout that fits, with nothing of the search's own arithmetic but the memory that a stage uses."""
    layers, workers = problem.layers, len(problem.facts.workers)
    for size in range(1, min(workers, layers) + 1):
        for order in permutations(range(workers), size):
            for cuts in combinations(range(1, layers), size - 1):
                layout = layout_of(zip(order, (0, *cuts), (*cuts, layers), strict=True))
                if fits(problem, layout):
                    yield layout


def bytes_of(problem: Problem, layout: Layout) -> dict[str, int]:
    cost, names, used = problem.workload.cost, problem.facts.names, {}
    for share in layout:
        mine = share.layers
        weights = sum(cost.layer_weights[mine.first : mine.last]) + cost.kv_per_layer * len(mine)
        weights += cost.embedding * (mine.first == 0) + cost.output * (mine.last == problem.layers)
        used[names[share.worker]] = weights + cost.workspace
    return used


def fits(problem: Problem, layout: Layout) -> bool:
    used, facts = bytes_of(problem, layout), problem.facts
    free = {device.worker: device.free_bytes for device in facts.devices}
    return all(used[name] <= free[name] for name in used) and all(
        sum(used.get(name, 0) for name in pool.workers) <= pool.free_bytes for pool in facts.pools
    )


def least(problem: Problem, objective: Objective) -> float | None:
    """What brute force finds."""
    predictor = problem.predictor
    if objective is Objective.LATENCY:
        values = [predictor.token_s(layout) for layout in every_layout(problem)]
    else:
        values = [predictor.best_groups(layout, problem.workload.streams)[1] for layout in every_layout(problem)]
    values = [value for value in values if value < float("inf")]
    return min(values) if values else None


def found(problem: Problem, objective: Objective, tie: float = 0.0) -> float | None:
    best = optimum(problem, AllLayouts(range(len(problem.facts.workers))), objective, tie=tie)
    if best is None:
        return None
    assert best.proved
    return best.forecast.token_s if objective is Objective.LATENCY else best.forecast.period_s


@pytest.mark.parametrize("objective", Objective)
@calm
@given(data=st.data())
def test_the_search_finds_what_brute_force_finds(objective, data):
    problem = data.draw(problems())
    expected = least(problem, objective)
    assert found(problem, objective) == (expected if expected is None else pytest.approx(expected, rel=EXACT))


@pytest.mark.parametrize("objective", Objective)
@calm
@given(data=st.data())
def test_a_plan_has_every_layer_once_and_fits_everywhere(objective, data):
    problem = data.draw(problems())
    best = optimum(problem, AllLayouts(range(len(problem.facts.workers))), objective)
    if best is not None:
        ends = [0, *(share.layers.last for share in best.layout)]
        assert [share.layers.first for share in best.layout] == ends[:-1]
        assert ends[-1] == problem.layers
        assert len({share.worker for share in best.layout}) == len(best.layout)
        assert fits(problem, best.layout)


@calm
@given(problem=problems(most_workers=3))
def test_among_equally_fast_plans_the_first_token_comes_soonest(problem):
    best = optimum(problem, AllLayouts(range(len(problem.facts.workers))), Objective.LATENCY, tie=0.0)
    if best is not None:
        predictor = problem.predictor
        limit = best.forecast.token_s * (1 + EXACT)
        equals = [layout for layout in every_layout(problem) if predictor.token_s(layout) <= limit]
        assert best.forecast.ttft_s <= min(map(predictor.ttft_s, equals)) * (1 + EXACT)


@pytest.mark.parametrize("objective", Objective)
@calm
@given(data=st.data())
def test_a_further_worker_never_makes_the_best_plan_worse(objective, data):
    problem = data.draw(problems())
    names = problem.facts.names
    fewer = problem.facts.only(names[:-1])
    before = found(Problem(fewer, problem.workload), objective) if fewer.workers else None
    after = found(problem, objective)
    assert before is None or (after is not None and after <= before * (1 + EXACT))


@pytest.mark.parametrize("objective", Objective)
@calm
@given(data=st.data())
def test_a_link_of_half_the_cost_never_makes_the_best_plan_worse(objective, data):
    problem = data.draw(problems())
    facts = problem.facts
    number = data.draw(st.integers(0, len(facts.paths) - 1))
    path = facts.paths[number]
    faster = replace(path, rtt_s=path.rtt_s / 2, bytes_per_s=path.bytes_per_s * 2)
    nearer = replace(facts, paths=(*facts.paths[:number], faster, *facts.paths[number + 1 :]))
    before, after = found(problem, objective), found(Problem(nearer, problem.workload), objective)
    assert before == after or (before is not None and after is not None and after <= before * (1 + EXACT))


@pytest.mark.parametrize("objective", Objective)
@calm
@given(data=st.data())
def test_within_the_tie_a_plan_is_at_most_that_much_worse(objective, data):
    problem = data.draw(problems())
    exact, tied = found(problem, objective), found(problem, objective, tie=0.01)
    assert exact == tied or (exact is not None and tied is not None and tied <= exact * 1.01 * (1 + EXACT))


def test_engines_of_different_element_types_may_be_neighbours():
    kinds = (ElementType.F32, ElementType.F16, ElementType.F32)
    facts = made_up_cluster([Machine(1.0, free=2 * GIB, element=kind) for kind in kinds])
    best = optimum(Problem(facts, made_up_workload(6)), AllLayouts(range(3)), Objective.LATENCY)
    assert best is not None
    assert 1 in {share.worker for share in best.layout}
