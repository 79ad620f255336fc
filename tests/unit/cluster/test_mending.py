"""Plans without the workers that were lost, what is held where, and who is left out for a while."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperlane.cluster.pipelines.breaker import FAILURES, LONGEST_PAUSE_S, PAUSE_S, TRUSTED_AFTER_S, WINDOW_S, Breakers
from hyperlane.cluster.pipelines.controller import kept_of
from hyperlane.cluster.pipelines.holdings import Holdings
from hyperlane.cluster.pipelines.mending import fits_beside, is_mended, mended, same_places
from hyperlane.core import Address, Epoch, Kept
from hyperlane.stage.orders import LoadOrder, StageKey, WeightSources
from hyperlane.testing.toy import TOY_HEAD, toy_facts, toy_plan, toy_specs

PLACES = [Address("10.0.0.1", 7420 + number) for number in range(5)]
NEEDED = 100


def plan_of(stages: int = 3):
    plan = toy_plan(toy_facts(layers=6), stages)
    placed = [
        replace(stage, worker=replace(stage.worker, control=PLACES[stage.index]), weight_bytes=NEEDED)
        for stage in plan.stages
    ]
    return replace(plan, stages=tuple(placed))


def workers(*numbers: int, free: int = 1000, pool: str = ""):
    worker = plan_of().stages[0].worker
    return [replace(worker, control=PLACES[number], memory_free=free, memory_pool=pool) for number in numbers]


def places_of(plan) -> list[int]:
    return [PLACES.index(stage.worker.control) for stage in plan.stages]


# --- mending -------------------------------------------------------------------------------------------------


def test_stages_stay_and_the_lost_one_goes_to_a_worker_without_any():
    plan = mended(plan_of(), workers(0, 2, 4))
    assert places_of(plan) == [0, 4, 2]
    assert [stage.layers for stage in plan.stages] == [stage.layers for stage in plan_of().stages]
    assert not is_mended(plan)


def test_without_another_worker_one_takes_two_stages_the_one_with_most_room():
    left = [*workers(0), *workers(2, free=2000)]
    plan = mended(plan_of(), left)
    assert places_of(plan) == [0, 2, 2]
    assert is_mended(plan)
    assert not same_places(plan, plan_of())


def test_what_stays_is_counted_before_what_comes():
    assert mended(plan_of(), workers(0, 2, free=2 * NEEDED - 1)) is None
    assert places_of(mended(plan_of(), workers(0, free=3 * NEEDED))) == [0, 0, 0]
    assert mended(plan_of(), []) is None


def test_a_plan_whose_workers_are_all_there_is_the_same():
    assert same_places(mended(plan_of(), workers(0, 1, 2)), plan_of())


def test_only_what_has_to_be_loaded_needs_room_beside_what_runs():
    running = plan_of()
    moved = mended(running, workers(0, 2, 4))
    assert fits_beside(moved, running, [*workers(0, 2, free=0), *workers(4, free=NEEDED)])
    assert not fits_beside(moved, running, [*workers(0, 2), *workers(4, free=NEEDED - 1)])


def test_workers_of_one_machine_share_its_room():
    running = plan_of(1)
    wide = replace(
        plan_of(3), stages=tuple(replace(s, worker=replace(s.worker, memory_pool="m")) for s in plan_of(3).stages)
    )
    assert not fits_beside(wide, running, workers(0, 1, 2, free=2 * NEEDED, pool="m"))
    assert fits_beside(wide, running, workers(0, 1, 2, free=3 * NEEDED, pool="m"))


def test_a_limit_holds_beside_the_machines_room():
    running, pool = plan_of(1), {"pool": "m"}
    wide = replace(
        plan_of(3), stages=tuple(replace(s, worker=replace(s.worker, memory_pool="m")) for s in plan_of(3).stages)
    )
    limited = [replace(worker, pool_free=3 * NEEDED) for worker in workers(0, 1, 2, free=NEEDED, **pool)]
    assert fits_beside(wide, running, limited)
    assert not fits_beside(wide, running, [*limited[:2], replace(limited[2], memory_free=NEEDED - 1)])
    assert not fits_beside(wide, running, workers(0, 1, 2, free=NEEDED, **pool))


def test_what_is_kept_is_the_end_of_the_ring_that_served_in_the_last_pipeline():
    head = order_of(0).spec.epoch.head
    last = Epoch(head, 4)

    def orders(*held: int | None) -> list[LoadOrder]:
        return [order_of(0, 5, None if one is None else StageKey(Epoch(head, one), 0)) for one in held]

    assert kept_of(orders(4, None, 4, 4), last) == Kept(4, 2)
    assert kept_of(orders(4, 4), last) == Kept(4, 0)
    assert kept_of(orders(None, 4), last) == Kept(4, 1)
    assert kept_of(orders(4, None), last) is None
    assert kept_of(orders(4, 3), last) is None
    assert kept_of(orders(None), None) is None
    many = [*orders(*[None] * 128), *orders(4)]
    assert kept_of(many, last) is None  # a row could not say so


# --- what is held --------------------------------------------------------------------------------------------


def order_of(number: int, counter: int = 1, held: StageKey | None = None) -> LoadOrder:
    spec = toy_specs(toy_plan(toy_facts(layers=6), 3), counter)[number]
    return LoadOrder(spec, WeightSources(), NEEDED, 0, 0, held=held)


def test_a_stage_that_is_held_serves_the_same_layers_of_a_later_epoch():
    held = Holdings()
    held.loaded(PLACES[0], order_of(1))
    assert held.serving(PLACES[0], order_of(1, counter=2).spec) == order_of(1).key
    assert held.serving(PLACES[0], order_of(0, counter=2).spec) is None
    assert held.serving(PLACES[1], order_of(1, counter=2).spec) is None
    held.loaded(PLACES[0], order_of(1, counter=2, held=order_of(1).key))
    assert held.besides(()) == [(PLACES[0], order_of(1, counter=2).key)]
    assert held.bytes_of(PLACES[0]) == NEEDED


def test_what_a_worker_says_counts():
    held = Holdings()
    held.loaded(PLACES[0], order_of(0))
    held.loaded(PLACES[0], order_of(1))
    stray = StageKey(Epoch(TOY_HEAD, 9), 0)
    assert held.said(PLACES[0], [order_of(1).key, stray], held.of(PLACES[0])) == [stray]
    assert held.besides([(PLACES[0], order_of(1).key)]) == []
    held.dropped(PLACES[0])
    assert held.bytes_of(PLACES[0]) == 0


def test_what_is_loaded_while_a_worker_is_asked_is_neither_forgotten_nor_a_stray():
    held = Holdings()
    asked = held.of(PLACES[0])
    held.loading(PLACES[0], order_of(0).key)
    assert held.said(PLACES[0], [order_of(0).key], asked) == []
    held.loaded(PLACES[0], order_of(0))
    assert held.said(PLACES[0], [], asked) == []
    assert list(held.of(PLACES[0])) == [order_of(0).key]


def test_what_a_silent_worker_holds_is_known_again_when_it_answers():
    held = Holdings()
    held.loaded(PLACES[0], order_of(0))
    held.silent(PLACES[0])
    assert held.besides(()) == []
    assert held.said(PLACES[0], [order_of(0).key], held.of(PLACES[0])) == []
    assert held.besides(()) == [(PLACES[0], order_of(0).key)]


def test_an_owner_drops_what_is_its_own_and_what_stands_by_where_it_needs_room():
    held = Holdings()
    for place, owner in zip(PLACES, ("a", "b", "spare"), strict=False):
        held.loaded(place, order_of(0), owner)
    assert held.besides((), "a", [PLACES[2]]) == [(PLACES[0], order_of(0).key), (PLACES[2], order_of(0).key)]


# --- breakers ------------------------------------------------------------------------------------------------


def failing(breakers: Breakers, count: int, every_s: float, from_s: float = 0.0) -> bool:
    return [breakers.failed(PLACES[0], from_s + every_s * number) for number in range(count)][-1]


def test_a_worker_that_fails_often_is_left_out_and_tried_again_later():
    breakers = Breakers()
    assert not failing(breakers, FAILURES - 1, 1.0)
    assert failing(breakers, 1, 1.0, from_s=10.0)
    assert breakers.is_open(PLACES[0], 11.0)
    assert not breakers.is_open(PLACES[1], 11.0)
    assert breakers.reason(PLACES[0], 11.0) == "left out after 3 failures; tried again in 59 s"
    assert breakers.next_half_open_s(11.0) == pytest.approx(PAUSE_S - 1.0)
    assert not breakers.is_open(PLACES[0], 10.0 + PAUSE_S)
    assert not breakers.is_trusted(PLACES[0], 10.0 + PAUSE_S)
    assert breakers.is_trusted(PLACES[0], 11.0 + PAUSE_S + TRUSTED_AFTER_S)
    assert breakers.is_trusted(PLACES[1], 11.0)
    assert breakers.reason(PLACES[0], 10.0 + PAUSE_S) == ""


def test_a_worker_that_fails_when_it_is_tried_again_is_left_out_for_longer_up_to_a_limit():
    breakers = Breakers()
    failing(breakers, FAILURES, 1.0)
    now_s, pauses = 2.0, []
    for _ in range(7):
        pauses.append(breakers.next_half_open_s(now_s))
        now_s += pauses[-1]
        assert breakers.failed(PLACES[0], now_s)
    assert pauses[:3] == [PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_failures_that_lie_apart_leave_nobody_out():
    assert not failing(Breakers(), 10, WINDOW_S)


def test_a_worker_that_holds_out_starts_anew():
    breakers = Breakers()
    failing(breakers, FAILURES, 1.0)
    assert not breakers.failed(PLACES[0], 3.0 + PAUSE_S + TRUSTED_AFTER_S)


def test_a_lost_stage_goes_to_the_worker_that_holds_it_ready():
    plan = mended(plan_of(), [*workers(0, 2, 3), *workers(4, free=5000)], ready={(PLACES[3], 1)})
    assert places_of(plan) == [0, 3, 2]


def test_a_ready_stage_elsewhere_moves_nobody_who_is_there():
    assert places_of(mended(plan_of(), workers(0, 1, 2, 3), ready={(PLACES[3], 1)})) == [0, 1, 2]
