"""Plans with what is there: measured where anything hangs on it, by free memory where measuring fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from hyperlane.cluster.planner.facts import HEAD, ClusterFacts, Objective
from hyperlane.cluster.planning import Names, Planning, Wishes
from hyperlane.cluster.profile.measured import Measured, Node, Route
from hyperlane.cluster.profile.shape import ProfileShape
from hyperlane.cluster.wanted import Use, Wanted, context_of, wanted, weight_bits
from hyperlane.cluster.worker_client import WorkerClient
from hyperlane.core import Address, ModelFacts
from hyperlane.errors import ClusterError, ConfigError, DoesNotFit, LoadFailed, WorkerBusy, WorkerUnreachable
from hyperlane.models.weights import TensorInfo
from hyperlane.testing.clusters import GIB, Machine, made_up_cluster, made_up_model, made_up_workload

FAST, SLOW = Machine(0.5, free=40 * GIB), Machine(5.0, free=40 * GIB)
WANTED = Wanted(made_up_workload(8), ProfileShape(made_up_model(8), ((),), "", "", (1,), (2,), 0, 0))
FREE = Wishes()
BEST = Address("10.0.0.2", 7421)


class Measuring:
    """What a cluster is said to be; counts how often it is asked. `error`: that measuring fails with."""

    def __init__(self, facts: ClusterFacts, error: Exception | None = None) -> None:
        self.facts, self.error, self.asked = facts, error, 0

    async def measure(self, nodes: Sequence[Node], shape: ProfileShape, report: object) -> Measured:
        self.asked += 1
        if self.error is not None:
            raise self.error
        facts = self.facts.refreshed([node.facts for node in nodes])
        return Measured(facts, (Route(HEAD, "n0", BEST), Route("n0", "n1", BEST)))

    async def routes(self, nodes: Sequence[Node], report: object) -> tuple[Route, ...]:
        if self.error is not None:
            raise self.error
        return (Route(HEAD, "n0", BEST),)


def nodes_of(facts: ClusterFacts) -> list[Node]:
    return [Node(WorkerClient(Address("10.0.0.1", worker.control.port)), worker) for worker in facts.workers]


def plan(measuring: Measuring | None, facts: ClusterFacts, wishes: Wishes = FREE):
    return asyncio.run(Planning(wishes, measuring).now(WANTED, nodes_of(facts)))


def outlook(measuring: Measuring | None, facts: ClusterFacts, wishes: Wishes = FREE):
    return asyncio.run(Planning(wishes, measuring).outlook(WANTED, nodes_of(facts)))


def test_the_fast_worker_alone_is_taken_and_the_plan_says_what_it_will_do():
    facts = made_up_cluster([SLOW, FAST])
    planned = plan(Measuring(facts), facts)
    assert [stage.worker.name for stage in planned.plan.stages] == ["n1"]
    assert planned.plan.prediction is not None
    assert planned.plan.prediction.token_s == pytest.approx(8 * 0.5e-3)


def test_workers_that_were_named_are_all_used_each_by_its_speed():
    facts = made_up_cluster([SLOW, FAST])
    stages = plan(Measuring(facts), facts, Wishes(everyone=True)).plan.stages
    assert {stage.worker.name: len(stage.layers) for stage in stages} == {"n0": 1, "n1": 7}


def test_a_worker_alone_is_not_measured_to_be_planned_but_to_be_shown():
    facts = made_up_cluster([FAST])
    measuring = Measuring(facts)
    assert plan(measuring, facts).plan.prediction is None
    assert measuring.asked == 0
    assert outlook(measuring, facts).plan.prediction is not None


@pytest.mark.parametrize("error", [LoadFailed("no such op"), ClusterError("no room for a layer")])
def test_where_measuring_fails_memory_decides_and_a_warning_says_so(error, caplog):
    facts = made_up_cluster([FAST, replace(FAST, free=120 * GIB)])
    planned = plan(Measuring(facts, error), facts)
    assert [len(stage.layers) for stage in planned.plan.stages] == [2, 6]
    assert planned.plan.prediction is None
    assert str(error) in caplog.text
    shown = outlook(Measuring(facts, error), facts)
    assert (shown.plan, shown.survey) == (planned.plan, None)


def test_a_worker_that_is_not_there_is_an_error():
    facts = made_up_cluster([FAST, SLOW])
    with pytest.raises(WorkerUnreachable):
        plan(Measuring(facts, WorkerUnreachable("gone")), facts)


@pytest.mark.parametrize("measured", [True, False])
def test_layers_by_hand_are_taken_measured_or_not(measured):
    facts = made_up_cluster([FAST, SLOW])
    measuring = Measuring(facts, None if measured else LoadFailed("no"))
    asked = Wishes(layers=("n1=0:3", "n0=3:8"))
    planned = plan(measuring, facts, asked)
    assert [(stage.worker.name, str(stage.layers)) for stage in planned.plan.stages] == [("n1", "0-2"), ("n0", "3-7")]
    assert (planned.plan.prediction is not None) == measured
    with pytest.raises(ConfigError, match="leaves out layers 3:8"):
        plan(measuring, facts, Wishes(layers=("n1=0:3",)))


def test_a_worker_alone_on_another_machine_is_reached_over_the_best_path_to_it():
    facts = made_up_cluster([FAST])
    worker = replace(facts.workers[0], data=Address("10.0.0.1", 7421))
    facts = replace(facts, workers=(worker,))
    assert plan(Measuring(facts), facts).data_port(None, worker) == BEST
    assert plan(Measuring(facts, ClusterError("no")), facts).data_port(None, worker) == worker.data
    assert plan(None, facts).data_port(None, worker) == worker.data


def test_links_go_over_the_best_paths_that_were_measured():
    facts = made_up_cluster([FAST, SLOW])
    planned = plan(Measuring(facts), facts)
    first, second = facts.workers
    assert planned.data_port(None, first) == BEST
    assert planned.data_port(first, second) == BEST
    assert planned.data_port(None, second) == second.data


def test_an_outlook_has_every_candidate_and_the_winners_plan():
    facts = made_up_cluster([FAST, SLOW])
    shown = outlook(Measuring(facts), facts, Wishes(Objective.THROUGHPUT))
    assert [len(candidate.workers) for candidate in shown.survey.candidates] == [1, 1, 2]
    assert [stage.worker.name for stage in shown.plan.stages] == list(shown.survey.winner.workers)


def test_an_outlook_where_nothing_fits_says_what_would():
    facts = made_up_cluster([replace(FAST, free=GIB), replace(SLOW, free=GIB)])
    shown = outlook(Measuring(facts), facts)
    assert shown.plan is None
    assert shown.survey.refusal.ways.node_bytes > 0
    with pytest.raises(DoesNotFit, match="one more node"):
        plan(Measuring(facts), facts)


BUSY = WorkerBusy("it runs stages and was never measured")


def better(planning, facts, running):
    return asyncio.run(planning.better(WANTED, nodes_of(facts), running))


@pytest.mark.parametrize(("error", "wishes"), [(None, FREE), (BUSY, Wishes(everyone=True))])
def test_a_better_plan_is_moved_to_measured_or_with_more_workers_where_all_were_asked_for(error, wishes):
    facts = made_up_cluster([FAST, FAST, SLOW])
    running = plan(None, facts, Wishes(layers=("n2=0:8",))).plan
    planning = Planning(wishes, Measuring(facts, error))
    found = better(planning, facts, running)
    assert found is not None
    if error is None:
        assert found.plan.stages[0].worker.name != "n2"
        assert found.plan.prediction is not None
    else:
        assert len(found.plan.stages) == 3
    assert better(planning, facts, found.plan) is None


def test_a_worker_that_comes_back_takes_part_where_all_were_asked_for_though_that_is_slower():
    facts = made_up_cluster([FAST, FAST, SLOW])
    running = plan(None, facts, Wishes(layers=("n0=0:4", "n1=4:8"))).plan
    found = better(Planning(Wishes(everyone=True), Measuring(facts)), facts, running)
    assert found is not None
    assert len(found.plan.stages) == 3
    assert better(Planning(FREE, Measuring(facts)), facts, running) is None


def test_where_the_best_are_to_be_taken_nobody_moves_unmeasured_but_says_what_holds_measuring_up():
    facts = made_up_cluster([FAST, FAST, SLOW])
    running = plan(None, facts, Wishes(layers=("n2=0:8",))).plan
    planning = Planning(FREE, Measuring(facts, BUSY))
    assert better(planning, facts, running) is None
    assert planning.is_held_up
    assert better(Planning(FREE, Measuring(facts)), facts, running) is not None


def test_nobody_makes_no_plan_better():
    running = plan(None, made_up_cluster([FAST])).plan
    assert asyncio.run(Planning(FREE).better(WANTED, [], running)) is None


def test_machines_of_one_name_are_told_apart_for_good():
    one, two = made_up_cluster([FAST, SLOW]).workers
    same, names = replace(two, name="n0", control=Address("10.0.0.7", 7420)), Names()
    assert [names.given(worker).name for worker in (one, same, two)] == ["n0", "n0@10.0.0.7", "n1"]
    assert [names.given(worker).name for worker in (same, one)] == ["n0@10.0.0.7", "n0"]


def test_workers_of_one_name_on_one_machine_are_told_apart_by_their_ports():
    names, worker = Names(), made_up_cluster([FAST]).workers[0]
    twins = [replace(worker, name="box/cpu", control=Address("10.0.0.7", port)) for port in (7420, 7520)]
    assert [names.given(one).name for one in twins] == ["box/cpu", "box/cpu@10.0.0.7:7520"]


def test_no_worker_is_said():
    with pytest.raises(DoesNotFit, match="no worker"):
        asyncio.run(Planning(Wishes()).now(WANTED, []))


# --- what is wanted ------------------------------------------------------------------------------------------


class Tensors:
    """A file of two matrices, one of 4 bit and one of 8."""

    _found = (TensorInfo("a", (4, 32), "Q4_0", 64), TensorInfo("b", (4, 32), "Q8_0", 128))

    def names(self) -> list[str]:
        return [info.name for info in self._found]

    def info(self, name: str) -> TensorInfo | None:
        return next((info for info in self._found if info.name == name), None)


def workload_of(model: ModelFacts, **use: int):
    cost = made_up_workload(model.layers).cost
    return wanted(model, Tensors(), cost, Use(**({"slots": 4, "context": 2048, "chunk_tokens": 48} | use))).workload


def test_a_workload_has_as_many_streams_as_slots_and_fits_the_context():
    usual = workload_of(made_up_model(4))
    assert (usual.streams, usual.prompt_tokens, usual.answer_tokens, usual.chunk_tokens) == (4, 512, 128, 48)
    short = workload_of(made_up_model(4), context=64, slots=1)
    assert short.prompt_tokens + short.answer_tokens <= 64
    assert short.streams == 1
    assert usual.weight_bits == 6.0


def test_weights_of_nothing_have_no_bits():
    assert weight_bits([]) == 0.0


def test_a_context_is_the_models_but_not_a_huge_one_unless_asked():
    model = replace(made_up_model(4), context=1 << 17)
    assert context_of(None, model) == 8192
    assert context_of(100_000, model) == 100_000
    with pytest.raises(ConfigError, match="at most 131072"):
        context_of(200_000, model)
