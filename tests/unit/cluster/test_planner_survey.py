"""The table of candidates, the reason, refusals with what would fit, and placements by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hyperlane.cluster.planner.candidate import Kind
from hyperlane.cluster.planner.facts import ClusterFacts, Objective, Workload
from hyperlane.cluster.planner.partitioner import KnapsackPartitioner, MeasuredPlanner
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.refusal import refusal_of, with_context, with_slots, with_weights
from hyperlane.cluster.planner.table import survey_text
from hyperlane.core import Precision
from hyperlane.errors import ClusterError, ConfigError, DoesNotFit
from hyperlane.plain import plain
from hyperlane.testing.clusters import GIB, Machine, made_up_cluster, made_up_workload

FAST = Machine(0.5, free=20 * GIB, row_ms=0.01, step_ms=0.1, project_ms=1.0)
MIDDLE = Machine(0.9, free=20 * GIB, row_ms=0.05, step_ms=0.1, project_ms=1.5)
SLOW = Machine(3.0, free=8 * GIB, row_ms=0.6, step_ms=0.2, project_ms=4.0)


def workload(**changes: object) -> Workload:
    made = made_up_workload(
        32, hidden=4096, kv=GIB // 16, workspace=GIB // 4, embedding=GIB, output=GIB, streams=8, min_group_rows=2
    )
    return replace(made, **changes)


def cluster(*machines: Machine) -> ClusterFacts:
    return made_up_cluster(machines, rtt_ms=0.4, mb_per_s=110.0)


def with_free(gib: int, *machines: Machine) -> ClusterFacts:
    return cluster(*(replace(machine, free=gib * GIB) for machine in machines))


# --- the table -----------------------------------------------------------------------------------------------


def test_the_table_has_every_node_the_best_of_each_size_and_all_nodes():
    survey = KnapsackPartitioner().survey(cluster(FAST, MIDDLE, SLOW), workload())
    assert [(candidate.kind, len(candidate.workers)) for candidate in survey.candidates] == [
        (Kind.NODE, 1),
        (Kind.NODE, 1),
        (Kind.NODE, 1),
        (Kind.SUBSET, 2),
        (Kind.ALL, 3),
    ]
    assert [candidate.fits for candidate in survey.candidates] == [False, False, False, True, True]


def test_fewer_nodes_win_when_the_third_costs_more_than_it_saves_and_the_reason_has_the_numbers():
    survey = KnapsackPartitioner().survey(cluster(FAST, MIDDLE, SLOW), workload())
    winner, everyone = survey.winner, survey.candidates[-1]
    assert winner is not None
    assert set(winner.workers) == {"n0", "n1"}
    slow = next(stage for stage in everyone.best.stages if stage.worker == "n2")
    said = [float(number) for number in re.findall(r"([\d.]+) ms", survey.why)]
    taken, worse = slow.decode_s + slow.hop_s, everyone.token_s - winner.token_s
    assert said == [pytest.approx(1e3 * value, abs=0.06) for value in (taken, taken - worse, worse)]
    assert survey.why.startswith("2 of 3 nodes: n2's 1 layer ")


def test_a_node_that_does_not_fit_is_shown_with_the_bytes_that_it_lacks():
    facts = cluster(FAST, MIDDLE, SLOW)
    survey = KnapsackPartitioner().survey(facts, workload())
    (shortage,) = survey.candidates[2].shortages
    assert shortage.worker == "n2"
    assert shortage.needed_bytes == 34 * GIB + 32 * GIB // 16 + GIB // 4
    assert shortage.missing_bytes == shortage.needed_bytes - 8 * GIB
    assert "n2 lacks 28.2 GiB for layers 0-31" in survey_text(survey)


def test_replicas_are_compared_where_the_model_fits_single_nodes():
    survey = KnapsackPartitioner(Objective.THROUGHPUT).survey(with_free(40, FAST, FAST, SLOW), workload())
    replicas = survey.replicas
    assert replicas is not None
    assert len(replicas.pipelines) == 2 or len(replicas.pipelines) == 3
    assert sum(pipeline.forecast.streams for pipeline in replicas.pipelines) == 8
    rates = [pipeline.forecast.many_rate for pipeline in replicas.pipelines]
    assert replicas.many_rate == pytest.approx(sum(rates))
    assert "replicas would do" in survey.why


def test_nodes_that_hold_the_model_only_together_are_one_more_replica():
    facts = cluster(replace(FAST, free=40 * GIB), MIDDLE, replace(MIDDLE, free=20 * GIB))
    replicas = KnapsackPartitioner().survey(facts, workload()).replicas
    assert replicas is not None
    assert sorted(map(len, (pipeline.workers for pipeline in replicas.pipelines))) == [1, 2]


def test_replicas_of_workers_that_share_memory_fit_together():
    pooled = replace(FAST, free=60 * GIB, pool="ram")
    assert KnapsackPartitioner().survey(cluster(pooled, pooled), workload()).replicas is None
    roomy = replace(pooled, free=80 * GIB)
    assert KnapsackPartitioner().survey(cluster(roomy, roomy), workload()).replicas is not None


def test_one_node_is_the_only_candidate_of_one_node():
    survey = KnapsackPartitioner().survey(with_free(40, FAST), workload())
    assert len(survey.candidates) == 1
    assert survey.why == "the only node"


def test_nodes_that_are_not_used_are_named_with_the_memory_that_they_have():
    survey = KnapsackPartitioner().survey(cluster(FAST, MIDDLE, SLOW), workload())
    assert [node.worker for node in survey.unused] == ["n2"]
    assert "not used: n2 (8.0 GiB free)" in survey_text(survey)
    everyone = KnapsackPartitioner(everyone=True).survey(cluster(FAST, MIDDLE, SLOW), workload())
    assert everyone.unused == ()
    assert "not used" not in survey_text(everyone)


def test_more_nodes_than_layers_is_said():
    survey = KnapsackPartitioner().survey(cluster(FAST, MIDDLE, SLOW), made_up_workload(2))
    assert "the model has 2 layers for 3 nodes" in survey_text(survey)


@pytest.mark.parametrize("objective", Objective)
def test_a_survey_is_plain_data_for_json(objective):
    survey = KnapsackPartitioner(objective).survey(with_free(40, FAST, MIDDLE, SLOW), workload())
    data = json.loads(json.dumps(plain(survey)))
    assert data["winner"]["pipelines"][0]["forecast"]["streams"] == 8


def test_memory_after_loading_counts_the_whole_pool():
    pooled = replace(FAST, free=45 * GIB, pool="ram")
    survey = KnapsackPartitioner().survey(cluster(pooled, pooled), workload())
    both = survey.candidates[-1].best
    left = 45 * GIB - sum(stage.used_bytes for stage in both.stages)
    assert [stage.free_bytes for stage in both.stages] == [left, left]


# --- refusals ------------------------------------------------------------------------------------------------


def test_a_refusal_says_what_is_missing_and_every_way_out():
    wanted = workload(weight_bits=4.75)
    wanted = replace(wanted, cost=replace(wanted.cost, kv_per_layer=GIB // 4))
    facts = with_free(13, FAST, MIDDLE, SLOW)
    with pytest.raises(DoesNotFit) as refused:
        KnapsackPartitioner().plan(facts, wanted)
    text = str(refused.value)
    assert "34.0 GiB of weights" in text
    assert "n1: 13.0 GiB free, room for 10 layers" in text
    assert re.search(r"--slots \d+; --context \d+; weights of at most [\d.]+ bits each; one more node with", text)


@pytest.mark.parametrize("gib", [9, 11, 12])
def test_each_way_out_fits_and_the_next_step_does_not(gib):
    facts, wanted = with_free(gib, FAST, MIDDLE, SLOW), workload()
    ways = refusal_of(Problem(facts, wanted)).ways

    def fits(changed: Workload, on: ClusterFacts = facts) -> bool:
        try:
            KnapsackPartitioner().plan(on, changed)
        except DoesNotFit:
            return False
        return True

    if ways.slots is not None:
        assert fits(with_slots(wanted, ways.slots))
        assert not fits(with_slots(wanted, ways.slots + 1))
    if ways.context is not None:
        assert fits(with_context(wanted, ways.context))
        assert not fits(with_context(wanted, ways.context + 1))
    assert ways.weights_share is not None
    assert fits(with_weights(wanted, ways.weights_share))
    assert not fits(with_weights(wanted, ways.weights_share + 0.01))
    assert ways.node_bytes is not None
    more = cluster(*(replace(m, free=gib * GIB) for m in (FAST, MIDDLE, SLOW)), replace(SLOW, free=ways.node_bytes))
    less = cluster(
        *(replace(m, free=gib * GIB) for m in (FAST, MIDDLE, SLOW)), replace(SLOW, free=ways.node_bytes - (64 << 20))
    )
    assert fits(wanted, more)
    assert not fits(wanted, less)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    free=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    layers=st.lists(st.integers(1, 3), min_size=1, max_size=7),
    pooled=st.booleans(),
)
def test_the_ways_out_of_any_refusal_are_true(free, layers, pooled):
    machines = [Machine(1.0, free=gib * GIB // 2, pool="ram" if pooled and i < 2 else "") for i, gib in enumerate(free)]
    facts = cluster(*machines)
    wanted = made_up_workload(
        [size * GIB // 2 for size in layers], kv=GIB // 2, workspace=GIB // 4, embedding=GIB // 2, output=GIB // 2
    )
    survey = KnapsackPartitioner().survey(facts, wanted)
    assume(survey.refusal is not None)
    ways = survey.refusal.ways
    planner = KnapsackPartitioner()
    if ways.slots is not None:
        planner.plan(facts, with_slots(wanted, ways.slots))
    if ways.context is not None:
        planner.plan(facts, with_context(wanted, ways.context))
    if ways.weights_share is not None:
        planner.plan(facts, with_weights(wanted, ways.weights_share))
    assert ways.node_bytes is not None
    planner.plan(cluster(*machines, Machine(1.0, free=ways.node_bytes)), wanted)
    assert survey_text(survey)


def test_without_workers_the_refusal_says_how_to_start_one():
    with pytest.raises(DoesNotFit, match="hyperlane worker"):
        KnapsackPartitioner().plan(made_up_cluster([]), workload())


def test_nodes_with_memory_but_without_a_path_between_them_are_refused_for_that():
    facts = cluster(FAST, MIDDLE)
    apart = replace(facts, paths=tuple(path for path in facts.paths if "head" in (path.source, path.target)))
    with pytest.raises(DoesNotFit, match="no chain of measured links"):
        KnapsackPartitioner().plan(apart, workload())


# --- by hand -------------------------------------------------------------------------------------------------


def test_layers_by_hand_are_predicted_and_planned_in_ring_order():
    choice = KnapsackPartitioner().plan(cluster(FAST, MIDDLE, SLOW), workload(), layers=["n1=16:32", "n0=0:16"])
    assert [(stage.worker.name, str(stage.layers)) for stage in choice.plan.stages] == [("n0", "0-15"), ("n1", "16-31")]
    assert choice.candidate.kind is Kind.ASKED
    assert choice.candidate.best.forecast.token_s > 0


def test_a_node_is_named_by_its_address_or_the_beginning_of_its_name():
    facts = cluster(FAST, MIDDLE)
    address = str(facts.workers[0].control)
    choice = KnapsackPartitioner().plan(facts, workload(), layers=[f"{address}=0:16", "n1=16:32"])
    assert [stage.worker.name for stage in choice.plan.stages] == ["n0", "n1"]
    with pytest.raises(ConfigError, match="several of n0, n1"):
        KnapsackPartitioner().plan(facts, workload(), layers=["n=0:32"])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["n0=0:16"], "leaves out layers 16:32"),
        (["n0=0:8", "n1=16:32"], "leaves out layers 8:16"),
        (["n0=0:20", "n1=16:32"], "layers 16:20 twice"),
        (["n0=0:16", "n1=16:40"], "goes to 40"),
        (["n0=0:16", "n0=16:32"], "two ranges"),
        (["n9=0:32"], "no worker"),
        (["n0=16:16", "n1=0:32"], "has no layer"),
        (["n0:0-32"], "is not NODE=a:b"),
    ],
)
def test_layers_by_hand_that_are_no_placement_are_refused(asked, words):
    with pytest.raises(ConfigError, match=words):
        KnapsackPartitioner().plan(cluster(FAST, MIDDLE, SLOW), workload(), layers=asked)


def test_layers_by_hand_that_do_not_fit_are_refused_with_the_bytes():
    with pytest.raises(DoesNotFit, match=r"n2: layers 10-31 take 24\.6 GiB, 8\.0 GiB are free, 16\.6 GiB are missing"):
        KnapsackPartitioner().plan(cluster(FAST, MIDDLE, SLOW), workload(), layers=["n0=0:10", "n2=10:32"])


# --- the plan ------------------------------------------------------------------------------------------------


def test_the_plan_has_the_bytes_the_precisions_and_what_the_head_is_told():
    wanted = workload(precision=Precision.INT8)
    choice = KnapsackPartitioner(Objective.THROUGHPUT).plan(cluster(FAST, MIDDLE, SLOW), wanted)
    plan, cost = choice.plan, wanted.cost
    assert sum(stage.weight_bytes for stage in plan.stages) == sum(cost.layer_weights) + cost.embedding + cost.output
    assert sum(stage.kv_bytes for stage in plan.stages) == 32 * cost.kv_per_layer
    assert plan.precisions == (Precision.RAW, Precision.INT8, Precision.RAW)
    predicted, forecast = plan.prediction, choice.candidate.best.forecast
    assert (predicted.groups, predicted.many_rate) == (forecast.groups, forecast.many_rate)
    assert predicted.frames >= max(predicted.groups, 2 * len(plan.stages))
    assert len(predicted.stages_s) == len(plan.stages)


def test_a_planner_over_measurements_uses_the_memory_that_workers_report_now():
    facts, wanted = with_free(40, FAST, MIDDLE), workload()
    planner = MeasuredPlanner(KnapsackPartitioner(), facts, wanted)
    alone = planner.plan(wanted.model, facts.workers, wanted.cost, 8, 1024)
    assert [stage.worker.name for stage in alone.stages] == ["n0"]
    fuller = [replace(worker, memory_free=25 * GIB) for worker in reversed(facts.workers)]
    both = planner.plan(wanted.model, fuller, wanted.cost, 8, 1024)
    assert len(both.stages) == 2
    with pytest.raises(ClusterError, match="n7 was not measured"):
        planner.plan(wanted.model, [replace(fuller[0], name="n7")], wanted.cost, 8, 1024)


def test_weights_that_take_more_on_a_device_are_counted_so():
    facts, wanted = with_free(36, FAST), made_up_workload(32)
    KnapsackPartitioner().plan(facts, wanted)
    swollen = replace(facts, devices=(replace(facts.devices[0], weights_factor=1.25),))
    with pytest.raises(DoesNotFit):
        KnapsackPartitioner().plan(swollen, wanted)


# --- everyone, and what was asked for ------------------------------------------------------------------------


def test_everyone_takes_part_where_fewer_would_be_faster_and_the_reason_says_so():
    facts = with_free(60, FAST, MIDDLE, SLOW)
    everyone = KnapsackPartitioner(everyone=True)
    assert len(everyone.plan(facts, workload()).plan.stages) == 3
    survey = everyone.survey(facts, workload())
    assert sum(candidate is survey.winner for candidate in survey.candidates) == 1
    assert set(survey.winner.workers) == {"n0", "n1", "n2"}
    assert re.match(r"3 of 3 nodes, as all were asked for; on n0 a token would take [\d.]+ ms instead of", survey.why)


def test_everyone_where_that_is_best_has_the_usual_reason_too():
    survey = KnapsackPartitioner(everyone=True).survey(cluster(FAST, MIDDLE), workload())
    assert survey.why.startswith("2 of 2 nodes, as all were asked for; 2 of 2 nodes: ")


def test_everyone_but_those_who_cannot_hold_a_layer():
    facts = cluster(FAST, MIDDLE, replace(SLOW, free=GIB))
    choice = KnapsackPartitioner(everyone=True).plan(facts, workload())
    assert {stage.worker.name for stage in choice.plan.stages} == {"n0", "n1"}
    alone = KnapsackPartitioner(everyone=True).plan(cluster(FAST, FAST), made_up_workload(1))
    assert len(alone.plan.stages) == 1


def test_everyone_is_refused_as_others_are_when_nothing_fits():
    facts = with_free(2, FAST, MIDDLE)
    assert KnapsackPartitioner(everyone=True).survey(facts, workload()).refusal is not None
    with pytest.raises(DoesNotFit):
        KnapsackPartitioner(everyone=True).plan(facts, workload())


@pytest.mark.parametrize("objective", Objective)
def test_layers_that_are_asked_for_win_the_table_and_the_reason_has_what_the_best_would_do(objective):
    facts = with_free(60, FAST, MIDDLE)
    survey = KnapsackPartitioner(objective).survey(facts, workload(), layers=["n1=0:30", "n0=30:32"])
    assert survey.winner is survey.candidates[-1]
    assert survey.winner.kind is Kind.ASKED
    assert re.match(r"as --layers asks; on n0( and n1)? (a token|many streams) would", survey.why)
    with pytest.raises(ConfigError, match="no worker"):
        KnapsackPartitioner(objective).survey(facts, workload(), layers=["n7=0:32"])


def test_hops_within_a_machine_are_marked_and_cost_what_was_measured():
    facts = cluster(FAST, MIDDLE, SLOW)
    paths = [replace(path, loopback={path.source, path.target} == {"n0", "n1"}) for path in facts.paths]
    survey = KnapsackPartitioner().survey(replace(facts, paths=tuple(paths)), workload())
    stages = {stage.worker: stage for stage in survey.candidates[-1].best.stages}
    order = [stage.worker for stage in survey.candidates[-1].best.stages]
    following = dict(zip(order, [*order[1:], "head"], strict=True))
    assert {name for name, stage in stages.items() if stage.same_machine} == {
        name for name in order if {name, following[name]} == {"n0", "n1"}
    }
    assert any(stage.same_machine for stage in survey.winner.best.stages)
    assert "ms, same machine" in survey_text(survey)
    unmarked = KnapsackPartitioner().survey(facts, workload())
    assert [s.hop_s for s in unmarked.winner.best.stages] == [s.hop_s for s in survey.winner.best.stages]
