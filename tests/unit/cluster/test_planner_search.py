"""Clusters beyond the exact search, single orders, shared limits, and windows."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperlane
from hyperlane.cluster.planner import search
from hyperlane.cluster.planner.chain import OneOrder
from hyperlane.cluster.planner.facts import ClusterFacts, MemoryPool, Objective, pools_of
from hyperlane.cluster.planner.optimum import optimum
from hyperlane.cluster.planner.partitioner import KnapsackPartitioner
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.reach import reach
from hyperlane.cluster.planner.search import best_layout
from hyperlane.cluster.planner.step import WindowMinimum
from hyperlane.cluster.planner.subsets import AllLayouts
from hyperlane.testing.clusters import GIB, Machine, made_up_cluster, made_up_workload

calm = settings(deadline=None, max_examples=40)


def random_problem(seed: int, workers: int, free: float) -> Problem:
    """Workers of different speed and distance; `free`: of each, about, as a part of the model."""
    rng = random.Random(seed)
    machines = [
        Machine(rng.uniform(0.3, 3), free=int(rng.uniform(0.5, 1.5) * free * 24 * GIB), step_ms=0.1, project_ms=1.0)
        for _ in range(workers)
    ]
    distances = [[rng.uniform(0.1, 2) for _ in range(workers + 1)] for _ in range(workers + 1)]
    facts = made_up_cluster(machines, rtt_ms=distances, mb_per_s=110.0)
    return Problem(facts, made_up_workload(24, hidden=1024, streams=4, workspace=GIB // 4, output=GIB))


def value(found, objective: Objective) -> float:
    return found.forecast.token_s if objective is Objective.LATENCY else found.forecast.period_s


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("free", [0.25, 0.4, 1.2])
@pytest.mark.parametrize("seed", range(3))
def test_beyond_the_exact_size_a_plan_is_near_the_best(monkeypatch, objective, free, seed):
    problem = random_problem(seed, 7, free)
    exact = optimum(problem, AllLayouts(range(7)), objective, tie=0.0)
    monkeypatch.setattr(search, "EXACT_WORKERS", 4)
    monkeypatch.setattr(search, "TOGETHER", 4)
    found = best_layout(problem, objective, tie=0.0)
    assert (found is None) == (exact is None)
    if found is not None and exact is not None:
        assert not found.proved
        assert problem.fits(found.layout)
        assert value(found, objective) <= value(exact, objective) * 1.25


def test_a_model_that_needs_more_nodes_than_are_searched_together_is_placed():
    problem = random_problem(1, 16, 0.11)
    found = best_layout(problem, Objective.LATENCY)
    assert found is not None
    assert len(found.layout) > search.TOGETHER
    assert problem.fits(found.layout)


@calm
@given(seed=st.integers(0, 1 << 20))
def test_a_single_order_has_the_split_that_the_whole_search_finds_for_it(seed):
    problem = random_problem(seed, 4, 0.5)
    found = optimum(problem, AllLayouts(range(4)), Objective.LATENCY, tie=0.0)
    if found is not None:
        order = [share.worker for share in found.layout]
        again = optimum(problem, OneOrder(order), Objective.LATENCY, tie=0.0)
        assert again is not None
        assert again.forecast.token_s == pytest.approx(found.forecast.token_s)


@calm
@given(data=st.data())
def test_the_least_of_every_window_is_found(data):
    columns = data.draw(st.integers(1, 20))
    begin = np.array([data.draw(st.integers(0, columns + 1)) for _ in range(columns)])
    rows = np.array([[data.draw(st.integers(0, 9)) for _ in range(columns)] for _ in range(2)], np.float64)
    found = WindowMinimum(begin).of(rows)
    for end in range(columns):
        for row in range(2):
            assert found[row, end] == min(rows[row, begin[end] : end], default=np.inf)


@pytest.mark.parametrize("objective", Objective)
def test_workers_that_share_memory_hold_no_more_than_it_has(objective):
    pooled = [Machine(1.0, free=30 * GIB, pool="ram") for _ in range(4)]
    facts = made_up_cluster([*pooled, Machine(1.5, free=8 * GIB), Machine(1.6, free=8 * GIB)], rtt_ms=0.1)
    problem = Problem(facts, made_up_workload(40, workspace=GIB // 4))
    best = best_layout(problem, objective)
    assert best is not None
    assert problem.fits(best.layout)
    alone = Problem(facts.only(["n0", "n1", "n2", "n3"]), problem.workload)
    assert best_layout(alone, objective) is None


def test_a_pool_has_what_the_least_of_its_workers_sees():
    facts = made_up_cluster([Machine(1.0, free=9 * GIB, pool="a"), Machine(1.0, free=8 * GIB, pool="a"), Machine(1.0)])
    assert facts.pools == (MemoryPool(8 * GIB, ("n0", "n1")),)


def test_limits_of_workers_do_not_make_their_pool_smaller_nor_count_it_twice():
    facts = made_up_cluster([Machine(1.0, free=6 * GIB, pool="a")] * 2)
    limited = [replace(worker, pool_free=8 * GIB) for worker in facts.workers]
    assert pools_of(limited) == (MemoryPool(8 * GIB, ("n0", "n1")),)


@calm
@given(
    free=st.lists(st.integers(0, 10), min_size=1, max_size=4),
    layers=st.lists(st.integers(1, 3), min_size=1, max_size=8),
)
def test_what_memory_reaches_is_what_the_search_can_place(free, layers):
    facts = made_up_cluster([Machine(1.0, free=gib * GIB // 2) for gib in free])
    workload = made_up_workload([size * GIB // 2 for size in layers], embedding=GIB // 2, output=GIB // 2)
    problem = Problem(facts, workload)
    assert (reach(problem.memory) == len(layers)) == (best_layout(problem, Objective.LATENCY) is not None)


@pytest.mark.parametrize(
    "broken",
    [
        {"devices": ()},
        {"pools": (MemoryPool(1, ("stranger",)),)},
    ],
)
def test_facts_that_contradict_themselves_are_refused(broken):
    facts = made_up_cluster([Machine(1.0)])
    given_facts = {name: getattr(facts, name) for name in ("workers", "devices", "paths", "pools")} | broken
    with pytest.raises(ValueError, match="worker"):
        ClusterFacts(**given_facts)


def test_two_workers_of_one_name_are_refused():
    facts = made_up_cluster([Machine(1.0)])
    with pytest.raises(ValueError, match="different names"):
        ClusterFacts(facts.workers * 2, facts.devices * 2, facts.paths)


def test_the_package_offers_the_partitioner():
    assert hyperlane.KnapsackPartitioner is KnapsackPartitioner


@pytest.mark.parametrize("objective", Objective)
def test_workers_that_are_alike_are_used_in_the_order_in_which_they_were_named(objective):
    alike = made_up_cluster([Machine(1.0)] * 4, rtt_ms=0.1)
    plan = KnapsackPartitioner(objective, everyone=True).plan(alike, made_up_workload(12)).plan
    assert [stage.worker.name for stage in plan.stages] == ["n0", "n1", "n2", "n3"]


def test_workers_that_are_not_alike_are_used_in_the_best_order():
    far = [[0.0, 0.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0]]  # from the head to n0, and from n1 to the head
    facts = made_up_cluster([Machine(1.0)] * 2, rtt_ms=far)
    plan = KnapsackPartitioner(everyone=True).plan(facts, made_up_workload(4)).plan
    assert [stage.worker.name for stage in plan.stages] == ["n1", "n0"]
