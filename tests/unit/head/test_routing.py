"""Which pipeline a request goes to."""

from __future__ import annotations

from hyperlane.head.routing import Route, choose, common_unit


def route(number: int, unfinished: int = 0, *, held: int = 0, rate: float = 1.0, serves: bool = True) -> Route:
    return Route(number, serves, unfinished, 4, rate, held)


def chosen(*routes: Route, prompt: int = 100) -> int:
    return choose(routes, prompt).number


def test_the_least_busy_pipeline_is_chosen_and_of_equals_the_first():
    assert chosen(route(0, 2), route(1, 1), route(2, 3)) == 1
    assert chosen(route(0, 1), route(1, 1)) == 0


def test_a_faster_pipeline_has_more_requests():
    assert chosen(route(0, 1, rate=10.0), route(1, 0, rate=4.0)) == 0
    assert chosen(route(0, 2, rate=10.0), route(1, 0, rate=4.0)) == 1


def test_a_pipeline_that_does_not_run_is_chosen_only_where_none_does():
    assert chosen(route(0, 0, serves=False), route(1, 3)) == 1
    assert chosen(route(0, 1, serves=False), route(1, 0, serves=False)) == 1


def test_a_free_slot_is_better_than_a_faster_queue():
    assert chosen(route(0, 4, rate=100.0), route(1, 3)) == 1


def test_a_pipeline_that_holds_the_prompt_is_chosen_while_it_is_not_much_busier():
    assert chosen(route(0, 0), route(1, 1, held=100)) == 1
    assert chosen(route(0, 0), route(1, 2, held=100)) == 0
    assert chosen(route(0, 1), route(1, 3, held=100)) == 1


def test_a_small_share_of_the_prompt_is_worth_little_waiting():
    assert chosen(route(0, 0), route(1, 0, held=20)) == 1
    assert chosen(route(0, 0), route(1, 1, held=20)) == 0


def test_what_all_hold_decides_nothing():
    assert chosen(route(0, 1, held=80), route(1, 0, held=80)) == 1


def test_a_few_tokens_in_common_decide_nothing():
    assert chosen(route(0, 0), route(1, 0, held=15), prompt=16) == 0


def test_the_holder_is_left_when_its_slots_are_full():
    assert chosen(route(0, 3), route(1, 4, held=100)) == 0


def test_rates_are_compared_only_where_all_are_known():
    assert common_unit([3.0, 6.0]) == [3.0, 6.0]
    assert common_unit([3.0, 0.0]) == [1.0, 1.0]
