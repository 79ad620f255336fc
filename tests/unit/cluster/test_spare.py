"""Which worker is kept out of the plans, which of their stages it holds, and who has which worker."""

from __future__ import annotations

from dataclasses import replace

from hyperlane.cluster.pipelines.claims import Claims
from hyperlane.cluster.planner.spare import Sparing, best_sparing, held_by, room_beside, spare_of
from hyperlane.core import Address
from hyperlane.testing.toy import toy_facts, toy_plan

PLACES = [Address("10.0.0.1", 7420 + number) for number in range(6)]
BYTES = (100, 300, 200)


def plan_of(*numbers: int, sizes: tuple[int, ...] = BYTES):
    """A plan over workers of these numbers, each stage with so many bytes."""
    plan = toy_plan(toy_facts(layers=6), len(numbers))
    placed = [
        replace(
            stage,
            worker=replace(stage.worker, name=f"n{number}", control=PLACES[number]),
            weight_bytes=size,
            kv_bytes=0,
            workspace_bytes=0,
        )
        for stage, number, size in zip(plan.stages, numbers, sizes, strict=False)
    ]
    return replace(plan, stages=tuple(placed))


def worker(number: int, free: int = 1000, pool: str = ""):
    stage = toy_plan(toy_facts(layers=6), 1).stages[0].worker
    return replace(stage, name=f"n{number}", control=PLACES[number], memory_free=free, memory_pool=pool)


def held(plans, free, failures=lambda _: 0):
    return [(one.plan, one.stage.index) for one in held_by(plans, free, failures)]


# --- what is held --------------------------------------------------------------------------------------------


def test_all_stages_are_held_where_memory_allows_the_longest_to_load_first():
    assert held([plan_of(0, 1, 2)], 600) == [(0, 1), (0, 2), (0, 0)]


def test_of_more_than_fit_those_are_held_that_take_longest_to_load():
    assert held([plan_of(0, 1, 2)], 500) == [(0, 1), (0, 2)]
    assert held([plan_of(0, 1, 2)], 250) == [(0, 2)]
    assert held([plan_of(0, 1, 2)], 99) == []


def test_a_stage_on_a_worker_that_failed_of_late_comes_first():
    assert held([plan_of(0, 1, 2)], 300, lambda place: 3 * (place == PLACES[0])) == [(0, 0), (0, 2)]


def test_stages_of_every_pipeline_are_held():
    assert held([plan_of(0, sizes=(100,)), plan_of(1, sizes=(300,))], 400) == [(1, 0), (0, 0)]


# --- who it is -----------------------------------------------------------------------------------------------


def test_the_spare_is_the_worker_outside_the_plan_that_can_hold_most():
    plan = plan_of(0, 1, 2)
    assert spare_of([plan], [worker(0), worker(3, free=300), worker(4, free=600), worker(5, free=200)]).name == "n4"


def test_of_equals_the_last_one_is_the_spare():
    assert spare_of([plan_of(0, 1, 2)], [worker(3), worker(4)]).name == "n4"


def test_whoever_is_in_the_plan_or_can_hold_nothing_is_no_spare():
    assert spare_of([plan_of(0, 1, 2)], [worker(0), worker(1), worker(2)]) is None
    assert spare_of([plan_of(0, 1, 2)], [worker(3, free=99)]) is None


def test_memory_that_the_plan_takes_of_the_same_machine_is_not_free_for_the_spare():
    plan = plan_of(0, 1, 2)
    here = replace(plan, stages=tuple(replace(s, worker=replace(s.worker, memory_pool="m")) for s in plan.stages))
    assert spare_of([here], [worker(3, free=600, pool="m"), worker(4, free=100)]).name == "n4"


def test_a_spare_holds_no_more_than_its_limit_and_what_its_machine_has_left():
    plan = plan_of(0, 1, 2)
    here = replace(plan, stages=tuple(replace(s, worker=replace(s.worker, memory_pool="m")) for s in plan.stages))
    limited = replace(worker(3, free=600, pool="m"), pool_free=1000)
    assert room_beside([here], limited) == 400
    assert room_beside([here], replace(limited, memory_free=150)) == 150


def test_the_worker_is_spared_whose_absence_costs_least():
    options = [
        Sparing((plan_of(1, 2),), worker(0, free=9000), 0.02),
        Sparing((plan_of(0, 2),), worker(1, free=400), 0.0101),
        Sparing((plan_of(0, 1),), worker(2, free=100), 0.01),
    ]
    assert best_sparing(options).spare.name == "n1"
    assert best_sparing([]) is None


# --- who has which worker ------------------------------------------------------------------------------------


def test_a_worker_of_one_pipelines_plan_is_closed_to_the_others():
    claims = Claims()
    claims.take("a", plan_of(0, 1, 2))
    assert claims.is_open_to("a", PLACES[0], in_need=False)
    assert not claims.is_open_to("b", PLACES[0], in_need=True)
    assert claims.is_open_to("b", PLACES[3], in_need=False)
    claims.take("a", plan_of(3))
    assert claims.is_open_to("b", PLACES[0], in_need=False)


def test_workers_of_a_pipeline_that_cannot_run_are_open_to_one_in_need_alone():
    claims = Claims()
    claims.take("a", plan_of(0, 1, 2))
    claims.down("a")
    assert claims.is_any_down
    assert claims.plans() == ()
    assert claims.is_open_to("b", PLACES[0], in_need=True)
    assert not claims.is_open_to("b", PLACES[0], in_need=False)


def test_while_a_pipeline_moves_it_has_the_workers_of_both_plans():
    claims = Claims()
    claims.take("a", plan_of(0), plan_of(1))
    assert claims.is_used(PLACES[0])
    assert claims.is_used(PLACES[1])
    assert [plan.stages[0].worker.control for plan in claims.plans()] == [PLACES[1]]
