"""When a refused client should come back, by how fast places became free."""

from __future__ import annotations

import pytest

from hyperlane.head.turnover import LEAST_S, MOST_S, REMEMBERED, Turnover


def busy(every_s: float, ends: int = 10) -> Turnover:
    """Requests ended at an even pace, from time 0 on."""
    turnover = Turnover()
    turnover.began(0.0)
    for number in range(1, ends + 1):
        turnover.ended(number * every_s)
    return turnover


@pytest.mark.parametrize("every_s", [2.0, 7.5])
def test_the_wait_is_the_time_between_two_ends(every_s):
    assert busy(every_s).retry_after_s(10 * every_s) == pytest.approx(every_s)


def test_each_that_is_refused_after_the_same_end_is_told_a_later_place():
    turnover = busy(2.0)
    assert [turnover.retry_after_s(20.0) for _ in range(3)] == pytest.approx([2.0, 4.0, 6.0])
    turnover.ended(22.0)
    assert turnover.retry_after_s(22.0) == pytest.approx(2.0)


def test_the_longer_nothing_ends_the_longer_the_wait():
    turnover = busy(1.0, ends=4)
    assert turnover.retry_after_s(40.0) == pytest.approx(10.0)


def test_only_the_last_ends_count():
    turnover = busy(1.0, ends=100)
    for number in range(1, REMEMBERED + 1):
        turnover.ended(100.0 + 5.0 * number)
    assert turnover.retry_after_s(100.0 + 5.0 * REMEMBERED) == pytest.approx(5.0)


def test_a_time_without_requests_does_not_count_and_the_rate_before_it_is_kept():
    turnover = busy(3.0)
    turnover.began(1000.0)
    assert turnover.retry_after_s(1000.5) == pytest.approx(3.0)
    turnover.ended(1004.0)
    assert turnover.retry_after_s(1004.0) == pytest.approx(4.0)


def test_before_anything_ended_it_is_the_time_that_has_passed():
    turnover = Turnover()
    turnover.began(10.0)
    assert turnover.retry_after_s(15.0) == pytest.approx(5.0)


def test_the_wait_has_bounds():
    assert busy(0.001).retry_after_s(0.01) == LEAST_S
    assert busy(1000.0).retry_after_s(10_000.0) == MOST_S
