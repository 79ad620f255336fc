"""How long a step may take: by the steps of its size, by others while those are few, never less than a moment."""

from __future__ import annotations

import pytest

from hyperlane.head.deadline import ENOUGH, FIRST_S, LEAST_S, UNMEASURED_S, WINDOW, StepDeadline, least_after


def measured(tokens: int, *took_s: float) -> StepDeadline:
    deadline = StepDeadline()
    for seconds in took_s:
        deadline.note(tokens, seconds)
    return deadline


def test_the_first_steps_have_much_time():
    assert StepDeadline().of(1) == FIRST_S
    assert measured(1, *[0.1] * (ENOUGH - 1)).of(1) == FIRST_S


def test_it_is_eight_times_the_99th_percentile_of_steps_of_that_size():
    assert measured(1, *[0.1] * ENOUGH).of(1) == pytest.approx(0.8)
    assert measured(1, *[0.1] * 198, 5.0, 5.0).of(1) == pytest.approx(0.8)
    assert measured(1, *[0.1] * 197, 5.0, 5.0, 5.0).of(1) == pytest.approx(40.0)


def test_quick_steps_are_given_a_moment():
    assert measured(4, *[0.001] * ENOUGH).of(4) == LEAST_S
    assert StepDeadline(least_s=2.0).of(1) == FIRST_S


def test_another_size_is_not_judged_by_this_one():
    deadline = measured(1, *[0.01] * ENOUGH)
    assert deadline.of(2) == UNMEASURED_S
    assert deadline.of(64) == UNMEASURED_S
    assert measured(40, *[0.1] * ENOUGH).of(63) == pytest.approx(0.8)


def test_steps_that_become_slower_have_more_time_at_once():
    deadline = measured(1, *[0.1] * WINDOW)
    assert deadline.of(1) == pytest.approx(0.8)
    for _ in range(3):
        deadline.note(1, 0.5)
    assert deadline.of(1) == pytest.approx(4.0)


def test_steps_that_become_faster_have_less_in_time():
    deadline = measured(1, *[1.0] * WINDOW)
    assert deadline.of(1) == pytest.approx(8.0)
    for _ in range(WINDOW):
        deadline.note(1, 0.1)
        deadline.of(1)
    deadline.note(1, 2.0)
    assert deadline.of(1) == pytest.approx(0.8)


def test_a_step_that_was_given_up_gives_the_next_pipelines_twice_the_time_for_a_while():
    least_s = least_after(LEAST_S, 3.0, overdue=True)
    assert least_s == 2 * LEAST_S
    assert least_after(least_s, 3.0, overdue=False) == least_s
    assert least_after(least_s, 700.0, overdue=False) == LEAST_S
    assert least_after(least_s, 700.0, overdue=True) == 2 * LEAST_S
    assert least_after(16.0, 3.0, overdue=True) == 16.0
