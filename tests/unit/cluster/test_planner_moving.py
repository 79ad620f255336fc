"""When a running plan changes, and to which of the equally good ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperlane.cluster.planner.facts import Objective, Workload
from hyperlane.cluster.planner.layout import layout_of
from hyperlane.cluster.planner.moving import (
    Moved,
    Stage,
    load_seconds,
    moved_count,
    moved_layers,
    stages_of,
    worth_moving,
)
from hyperlane.cluster.planner.partitioner import KnapsackPartitioner
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.replan import EQUAL, moves_of
from hyperlane.core import LayerRange
from hyperlane.testing.clusters import GIB, Machine, made_up_cluster, made_up_workload


def stages(*parts: tuple[str, int, int]) -> tuple[Stage, ...]:
    return tuple(Stage(name, LayerRange(first, last)) for name, first, last in parts)


def test_only_what_a_worker_lacks_is_moved():
    running = stages(("a", 0, 10), ("b", 10, 20))
    assert moved_layers(running, running) == ()
    shifted = moved_layers(running, stages(("a", 0, 8), ("b", 8, 20)))
    assert shifted == (Moved("b", (8, 9), embedding=False, output=False),)
    swapped = moved_layers(running, stages(("b", 0, 10), ("a", 10, 20)))
    assert [(move.embedding, move.output) for move in swapped] == [(True, False), (False, True)]
    assert moved_count(swapped) == 20
    joined = moved_layers(running, stages(("a", 0, 10), ("c", 10, 15), ("b", 15, 20)))
    assert joined == (Moved("c", tuple(range(10, 15)), embedding=False, output=False),)


@pytest.mark.parametrize(
    ("before", "after", "load_s", "is_worth"),
    [
        (None, 0.1, 1e6, True),
        (0.1, 0.1, 0.0, False),
        (0.1, 0.2, 0.0, False),
        (0.1, 0.097, 1.0, False),
        (0.1, 0.08, 30.0, True),
        (0.1, 0.08, 300.0, False),
        (0.1, 0.02, 300.0, True),
    ],
)
def test_a_plan_changes_when_the_gain_counts_and_loading_is_won_back(before, after, load_s, is_worth):
    verdict = worth_moving(before, after, load_s)
    assert verdict.is_worth is is_worth
    assert verdict.why


def test_loading_takes_as_long_as_the_slowest_worker():
    assert load_seconds([(100, 10.0), (100, 50.0)]) == 10.0
    assert load_seconds([]) == 0.0


def alike(count: int, free: int = 6) -> tuple[list[Machine], Workload]:
    return [Machine(1.0, free=free * GIB) for _ in range(count)], made_up_workload(8)


def rates(names) -> dict[str, float]:
    return dict.fromkeys(names, 1e9)


@pytest.mark.parametrize("objective", Objective)
def test_a_lost_worker_is_replaced_and_little_else_moves(objective):
    machines, workload = alike(3)
    facts = made_up_cluster(machines, rtt_ms=0.1)
    running = KnapsackPartitioner(objective).plan(facts.only(["n0", "n1"]), workload).plan
    again = KnapsackPartitioner(objective).replan(running, facts.only(["n0", "n2"]), workload, rates(facts.names))
    assert again.verdict.is_worth
    kept = next(stage for stage in running.stages if stage.worker.name == "n0")
    assert any(stage.worker.name == "n0" and stage.layers == kept.layers for stage in again.choice.plan.stages)
    assert [move.worker for move in again.moved] == ["n2"]


@pytest.mark.parametrize("objective", Objective)
def test_a_worker_of_the_same_speed_that_joins_changes_nothing(objective):
    machines, workload = alike(3)
    facts = made_up_cluster(machines, rtt_ms=0.1)
    running = KnapsackPartitioner().plan(facts.only(["n1", "n2"]), workload).plan
    again = KnapsackPartitioner().replan(running, facts, workload, rates(facts.names))
    assert again.moved == ()
    assert not again.verdict.is_worth


def test_a_much_faster_worker_that_joins_is_worth_the_move():
    machines, workload = alike(2)
    facts = made_up_cluster([*machines, Machine(0.1, free=20 * GIB)], rtt_ms=0.1)
    running = KnapsackPartitioner().plan(facts.only(["n0", "n1"]), workload).plan
    again = KnapsackPartitioner().replan(running, facts, workload, rates(facts.names))
    assert [stage.worker.name for stage in again.choice.plan.stages] == ["n2"]
    assert again.verdict.is_worth
    assert again.verdict.load_s == pytest.approx(8 * GIB / 1e9)
    slow = KnapsackPartitioner().replan(running, facts, workload, rates(facts.names) | {"n2": 1e6})
    assert not slow.verdict.is_worth


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_of_equally_good_plans_one_that_moves_few_layers_is_taken(data):
    speeds = data.draw(st.lists(st.integers(99, 104), min_size=2, max_size=3))
    facts = made_up_cluster([Machine(speed / 100, free=5 * GIB) for speed in speeds], rtt_ms=0.0)
    problem = Problem(facts, made_up_workload(6))
    cut = data.draw(st.integers(1, 5))
    order = data.draw(st.permutations(range(len(speeds))))
    asked = [f"n{order[0]}=0:{cut}", f"n{order[1]}={cut}:6"]
    running = KnapsackPartitioner().plan(facts, problem.workload, asked).plan
    chosen = KnapsackPartitioner().replan(running, facts, problem.workload, rates(facts.names))
    limit = KnapsackPartitioner().plan(facts, problem.workload).candidate.best.forecast.token_s * (1 + EQUAL)
    moves = moves_of(problem, stages_of(running.stages))
    every = [
        layout_of(zip(some, (0, *cuts), (*cuts, 6), strict=True))
        for size in (1, 2)
        for some in permutations(range(len(speeds)), size)
        for cuts in combinations(range(1, 6), size - 1)
    ]
    same_order = [layout for layout in every if [share.worker for share in layout] == order[:2]]
    considered = every if len(speeds) == 2 else same_order
    equals = [layout for layout in considered if problem.fits(layout) and problem.predictor.token_s(layout) <= limit]
    assert chosen.choice.candidate.best.forecast.token_s <= limit
    assert moved_count(chosen.moved) <= min(map(moves.of, equals), default=6)


def test_a_running_plan_is_compared_with_the_facts_of_now():
    machines, workload = alike(2)
    facts = made_up_cluster(machines, rtt_ms=0.1)
    running = KnapsackPartitioner().plan(facts, workload).plan
    slower = made_up_cluster([machines[0], replace(machines[1], layer_ms=50.0, row_ms=1.0)], rtt_ms=0.1)
    again = KnapsackPartitioner().replan(running, slower, workload, rates(facts.names))
    assert again.verdict.is_worth or len(again.choice.plan.stages) == 2
