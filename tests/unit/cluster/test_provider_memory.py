"""Stages take on each device what its provider makes of them; a second copy of the weights where there is room."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperlane.cluster.cost import stage_cost
from hyperlane.cluster.placement import ProportionalPlanner
from hyperlane.cluster.planner.facts import Objective
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.refusal import with_context, with_weights
from hyperlane.cluster.planner.search import best_layout
from hyperlane.core import Copies, StageCost, holds_twice
from hyperlane.models.source import facts_of, open_model
from hyperlane.testing.clusters import GIB, Machine, made_up_cluster, made_up_workload
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model

CARD = "CUDAExecutionProvider"
LAYERS = 4


def workload(kv: int = 0):
    """On a card a layer takes 2 GiB instead of 1, and 1 more where it is held twice."""
    made = made_up_workload(LAYERS, kv=kv)
    card = StageCost((2 * GIB,) * LAYERS, 0, 0, kv, GIB // 2, Copies((GIB,) * LAYERS, GIB), counted=True)
    return replace(made, cost=replace(made.cost, elsewhere=((CARD, card),)))


def problem(*free: int, total: int = 0, pool: str = "") -> Problem:
    """The first worker is on the processor, the others are cards."""
    cluster = made_up_cluster(
        [Machine(1.0, free=room * GIB, pool=pool if number else "") for number, room in enumerate(free)]
    )
    workers = tuple(
        replace(worker, provider=CARD if number else "none", memory_total=(total or room) * GIB)
        for number, (worker, room) in enumerate(zip(cluster.workers, free, strict=True))
    )
    return Problem(replace(cluster, workers=workers), workload())


@pytest.mark.parametrize(("free", "needed", "held"), [(100, 75, True), (100, 76, False), (40, 20, False)])
def test_a_quarter_of_a_device_stays_free(free, needed, held):
    assert holds_twice(free, 100, needed) == held


def stage_of(made: Problem):
    found = best_layout(made, Objective.LATENCY, size=1)
    assert found is not None
    (share,) = layout = found.layout
    return share, made.stage_bytes(share, layout), made.free_after(layout, share.worker)


def test_a_card_counts_its_own_bytes_twice_where_there_is_room():
    share, (weights, _), left = stage_of(problem(1, 20))
    assert (share.worker, weights / GIB, left / GIB) == (1, 8 + 5, 20 - 13.5)


def test_a_card_without_room_for_both_holds_one():
    share, (weights, _), left = stage_of(problem(1, 15))
    assert (share.worker, weights / GIB, left / GIB) == (1, 8, 15 - 8.5)


def test_a_processor_counts_as_before_beside_a_card():
    share, (weights, _), _ = stage_of(problem(5, 4))
    assert (share.worker, weights / GIB) == (0, 4)


def test_what_was_measured_of_weights_does_not_change_what_is_counted_to_the_byte():
    made = problem(1, 20)
    doubled = replace(made.facts, devices=tuple(replace(one, weights_factor=2.0) for one in made.facts.devices))
    assert stage_of(Problem(doubled, made.workload))[1] == stage_of(made)[1]


def test_a_plan_without_measurements_counts_alike():
    made = problem(1, 20)
    plan = ProportionalPlanner().plan(made.workload.model, made.facts.workers[1:], made.workload.cost, 8, 1024)
    assert plan.stages[0].weight_bytes == 13 * GIB
    assert plan.stages[0].workspace_bytes == GIB // 2


def test_what_would_fit_is_tried_with_every_providers_bytes():
    shorter = with_context(workload(kv=GIB), 511)
    assert shorter.cost.on(CARD).kv_per_layer == pytest.approx(shorter.cost.kv_per_layer)
    assert with_weights(workload(), 0.5).cost.on(CARD).layer_weights[0] == GIB + 1


@pytest.mark.parametrize(("slots", "model", "twice"), [
    (1, TinyModel(), False),
    (2, TinyModel(), False),
    (3, TinyModel(), True),
    (8, TinyModel(), True),
    (8, TinyModel(hidden=96, heads=3, kv_heads=1, ffn=96), False),
])  # fmt: skip
def test_a_second_copy_is_counted_for_several_slots_and_for_matrices_of_whole_tiles(slots, model, twice, tmp_path):
    with open_model(write_tiny_model(tmp_path / "tiny.gguf", model)) as file:
        cost = stage_cost(facts_of(file), file, slots, 64, 64)
    card = cost.on(CARD)
    assert card.counted
    assert (card.copies is not None) == twice
    assert cost.copies is None
    assert cost.on("CPUExecutionProvider") == cost
