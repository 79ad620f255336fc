"""Several pipelines over different workers."""

from __future__ import annotations

import pytest

from hyperlane.cluster.planner.facts import Objective
from hyperlane.cluster.planner.groups import best_groups, dealt
from hyperlane.cluster.planner.partitioner import KnapsackPartitioner
from hyperlane.cluster.planner.problem import Problem
from hyperlane.errors import DoesNotFit
from hyperlane.testing.clusters import GIB, Machine, made_up_cluster, made_up_workload


def groups(machines, count, objective=Objective.LATENCY, layers=4, **more):
    problem = Problem(made_up_cluster(machines), made_up_workload(layers))
    found = best_groups(problem, count, objective, **more)
    return None if found is None else [sorted(share.worker for share in layout) for layout in found]


def test_every_pipeline_has_workers_of_its_own_and_all_layers():
    problem = Problem(made_up_cluster([Machine(1.0, free=3 * GIB)] * 4), made_up_workload(4))
    layouts = best_groups(problem, 2, Objective.LATENCY)
    used = [share.worker for layout in layouts for share in layout]
    assert sorted(used) == [0, 1, 2, 3]
    for layout in layouts:
        assert sum(len(share.layers) for share in layout) == 4
    assert problem.fits(*layouts)


def test_small_workers_are_joined_with_large_ones():
    machines = [Machine(1.0, free=free * GIB) for free in (3, 1, 1, 3)]
    assert groups(machines, 2) in ([[0, 1], [2, 3]], [[0, 2], [1, 3]])


def test_by_latency_no_pipeline_is_left_with_the_slow_workers_alone():
    machines = [Machine(layer, free=3 * GIB) for layer in (1.0, 1.0, 8.0, 8.0)]
    found = groups(machines, 2)
    assert all(len(set(group) & {0, 1}) == 1 for group in found)


def test_a_worker_that_helps_nobody_is_left_out_unless_all_are_asked_for():
    machines = [Machine(1.0), Machine(1.0), Machine(50.0)]
    assert groups(machines, 2) == [[0], [1]]
    assert sorted(worker for group in groups(machines, 2, everyone=True) for worker in group) == [0, 1, 2]


def test_memory_that_workers_share_is_counted_once():
    shared = [Machine(1.0, free=6 * GIB, pool="m")] * 2
    assert groups(shared, 2, layers=4) is None
    assert groups([Machine(1.0, free=8 * GIB, pool="m")] * 2, 2, layers=4) == [[0], [1]]


def test_more_pipelines_than_workers_are_none():
    assert groups([Machine(1.0)] * 2, 3) is None


def test_beyond_a_few_workers_groups_still_fit():
    machines = [Machine(1.0 + number / 10, free=(1 + number % 3) * GIB) for number in range(9)]
    found = groups(machines, 3)
    assert len(found) == 3
    assert len({worker for group in found for worker in group}) == sum(map(len, found))


def test_workers_are_dealt_by_memory():
    assert dealt([4.0, 1.0, 1.0, 2.0], 2) == (frozenset({0}), frozenset({1, 2, 3}))
    assert dealt([1.0, 1.0, 1.0, 1.0], 2) == (frozenset({0, 2}), frozenset({1, 3}))


def test_the_plans_predict_and_the_refusal_says_how_many_there_could_be():
    partitioner = KnapsackPartitioner()
    facts, workload = made_up_cluster([Machine(1.0, free=3 * GIB)] * 4), made_up_workload(4)
    choices = partitioner.groups(facts, workload, 2)
    assert all(choice.plan.prediction is not None for choice in choices)
    with pytest.raises(DoesNotFit, match=r"3 replicas of made-up do not fit these 4 worker\(s\), 2 would"):
        partitioner.groups(facts, workload, 3)
