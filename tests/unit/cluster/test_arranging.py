"""The pipelines that a head begins with, and its spare."""

from __future__ import annotations

import asyncio

import pytest

from hyperlane.cluster.pipelines.arranging import Arranging
from hyperlane.cluster.planning import Planning, Wishes
from hyperlane.cluster.profile.measured import Measured, Node
from hyperlane.cluster.wanted import Wanted
from hyperlane.errors import ConfigError, DoesNotFit
from hyperlane.testing.clusters import GIB, Machine, made_up_cluster, made_up_workload

WANTED = Wanted(made_up_workload(4), shape=None)


class Measuring:
    """Knows the facts of a made-up cluster."""

    def __init__(self, facts) -> None:
        self._facts = facts

    async def measure(self, nodes, shape, report) -> Measured:
        return Measured(self._facts, ())

    async def routes(self, nodes, report):
        return ()


def arranged(machines, *, measured: bool = True, wishes: Wishes | None = None, outlook: bool = False, **asked):
    facts = made_up_cluster(machines)
    planning = Planning(wishes or Wishes(everyone=True), Measuring(facts) if measured else None)
    arranging = Arranging(WANTED, planning, **asked)
    nodes = [Node(None, worker) for worker in facts.workers]
    return asyncio.run(arranging.outlook(nodes) if outlook else arranging.now(nodes))


def workers_of(arrangement) -> list[list[str]]:
    return [[stage.worker.name for stage in one.plan.stages] for one in arrangement.planned]


def test_without_a_spare_all_take_part():
    arrangement = arranged([Machine(1.0, free=2 * GIB)] * 3)
    assert workers_of(arrangement) == [["n0", "n1", "n2"]]
    assert arrangement.spare is None


@pytest.mark.parametrize("measured", [True, False])
def test_of_equal_workers_the_last_one_is_the_spare(measured):
    arrangement = arranged([Machine(1.0, free=5 * GIB)] * 3, measured=measured, spare=True)
    assert workers_of(arrangement) == [["n0", "n1"]]
    assert arrangement.spare.name == "n2"


def test_the_worker_that_costs_most_time_is_the_spare():
    machines = [Machine(9.0, free=5 * GIB), Machine(1.0, free=5 * GIB), Machine(1.0, free=5 * GIB)]
    assert arranged(machines, spare=True).spare.name == "n0"


def test_a_worker_that_the_model_needs_is_no_spare():
    machines = [Machine(9.0, free=4 * GIB), Machine(1.0, free=1 * GIB), Machine(1.0, free=1 * GIB)]
    assert arranged(machines, spare=True).spare.name in ("n1", "n2")


def test_a_model_that_needs_every_worker_has_no_spare():
    with pytest.raises(DoesNotFit, match=r"there are 2 workers: start one more(.|\n)*does not fit"):
        arranged([Machine(1.0, free=2 * GIB)] * 2, spare=True)
    with pytest.raises(DoesNotFit, match="there is one worker"):
        arranged([Machine(1.0)], spare=True)


@pytest.mark.parametrize("measured", [True, False])
def test_several_pipelines_and_a_spare_have_different_workers(measured):
    arrangement = arranged([Machine(1.0, free=3 * GIB)] * 5, measured=measured, spare=True, replicas=2)
    used = [name for names in workers_of(arrangement) for name in names]
    assert len(workers_of(arrangement)) == 2
    assert sorted([*used, arrangement.spare.name]) == ["n0", "n1", "n2", "n3", "n4"]


def test_what_would_be_is_said_before():
    found = arranged([Machine(1.0, free=3 * GIB)] * 5, outlook=True, spare=True, replicas=2)
    assert len(found.replicas) == 2
    assert found.plan == found.replicas[0]
    assert found.spare.state == "planned"
    assert found.spare.stages == sum(len(plan.stages) for plan in found.replicas)
    assert 0 < len(found.spare.layers) <= found.spare.stages


@pytest.mark.parametrize("measured", [True, False])
def test_too_few_workers_for_the_replicas_are_refused(measured):
    with pytest.raises(DoesNotFit, match="3 replicas"):
        arranged([Machine(1.0)] * 2, measured=measured, replicas=3)


def test_a_placement_by_hand_is_of_one_pipeline():
    with pytest.raises(ConfigError, match="--layers places one pipeline"):
        arranged([Machine(1.0)] * 2, wishes=Wishes(layers=("n0=0:2", "n1=2:4")), replicas=2)
