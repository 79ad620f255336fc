"""When a frame is watched for, and when the receiver sleeps: pure, with a clock that the test moves."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from hyperlane.wire import anticipation
from hyperlane.wire.anticipation import (
    FIRST_AFTER,
    FRAMES_WITHOUT,
    LEAD_S,
    LONGEST_WATCH_S,
    STRIKES,
    Anticipation,
    await_frame,
)


def after(*waits_ms: float) -> Anticipation:
    """One that has seen these waits."""
    expected = Anticipation()
    for wait_ms in waits_ms:
        expected.note(wait_ms / 1000)
    return expected


def test_nothing_is_expected_before_some_waits_are_known() -> None:
    assert after(*[10.0] * (FIRST_AFTER - 1)).window() is None
    assert after(*[10.0] * FIRST_AFTER).window() == pytest.approx((0.010 - LEAD_S, 0.010 + LEAD_S))


def test_the_window_holds_the_most_waits_that_are_near_one_another() -> None:
    window = after(10.0, 50.0, 10.4, 10.2, 3.0, 10.1, 10.3, 90.0).window()
    assert window == pytest.approx((0.010 - LEAD_S, 0.0104 + LEAD_S))


def test_waits_that_differ_too_much_are_slept_through() -> None:
    apart = LONGEST_WATCH_S * 1000 * 1.1
    assert after(*[10 + apart * index for index in range(12)]).window() is None


def test_old_waits_are_forgotten() -> None:
    assert after(*[10.0] * 16, *[30.0] * 16).window() == pytest.approx((0.030 - LEAD_S, 0.030 + LEAD_S))


def test_short_waits_are_watched_from_the_beginning() -> None:
    window = after(*[0.1] * 8).window()
    assert window is not None
    assert window[0] == 0.0


def test_long_waits_are_slept_through() -> None:
    assert after(*[2000.0] * 8).window() is None


def test_a_processor_that_others_want_is_left_to_them_for_a_while() -> None:
    expected = after(*[10.0] * 8)
    for _ in range(STRIKES - 1):
        expected.taken()
    assert expected.window() is not None, "it may be an interrupt"
    expected.taken()
    for _ in range(FRAMES_WITHOUT):
        assert expected.window() is None
        expected.note(0.010)
    assert expected.window() is not None


class Clock:
    """Seconds that pass only when somebody sleeps, looks or yields."""

    def __init__(self, arrives_s: float) -> None:
        self.now_s, self.arrives_s = 0.0, arrives_s
        self.yield_s = 1e-6
        self.slept: list[float | None] = []
        self.looked = self.rehearsed = 0

    def read(self) -> float:
        """As `time.perf_counter`."""
        return self.now_s

    def ready(self, seconds: float | None) -> bool:
        """As a poll that takes so long at most."""
        if seconds == 0.0:
            self.looked += 1
            self.now_s += 1e-6
        else:
            self.slept.append(seconds)
            end_s = self.arrives_s if seconds is None else min(self.arrives_s, self.now_s + seconds)
            self.now_s = max(self.now_s, end_s)
        return self.now_s >= self.arrives_s

    def rehearse(self) -> None:
        """Takes a while."""
        self.rehearsed += 1
        self.now_s += 30e-6

    def give(self) -> None:
        """As `sched_yield`."""
        self.now_s += self.yield_s


Start = Callable[[float], Clock]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Puts a clock in the place of time."""

    def make(arrives_s: float) -> Clock:
        clock = Clock(arrives_s)
        monkeypatch.setattr(time, "perf_counter", clock.read)
        monkeypatch.setattr(anticipation, "step_aside", clock.give)
        return clock

    return make


def test_a_frame_in_its_window_is_seen_without_being_woken(start: Start) -> None:
    clock = start(0.0101)
    assert await_frame(after(*[10.0] * 8), clock.ready, 0.0, clock.rehearse)
    assert clock.slept == [pytest.approx(0.009)]
    assert clock.rehearsed > 1
    assert clock.now_s == pytest.approx(0.0101, abs=40e-6)


def test_an_early_frame_ends_the_sleep(start: Start) -> None:
    clock = start(0.004)
    assert await_frame(after(*[10.0] * 8), clock.ready, 0.0, clock.rehearse)
    assert clock.now_s == 0.004
    assert not clock.looked


def test_a_late_frame_is_slept_for(start: Start) -> None:
    clock = start(0.5)
    assert await_frame(after(*[10.0] * 8), clock.ready, 0.0, clock.rehearse)
    assert clock.slept == [pytest.approx(0.009), None]


def test_who_finds_the_processor_wanted_sleeps_and_stays_away(start: Start) -> None:
    clock, expected = start(0.0101), after(*[10.0] * 8)
    clock.yield_s = 1e-3
    for _ in range(STRIKES):
        clock.now_s = 0.0
        assert await_frame(expected, clock.ready, 0.0, clock.rehearse)
        expected.note(0.010)
    assert expected.window() is None


def test_no_wait_is_longer_than_it_may_be(start: Start) -> None:
    for timeout_s in (0.005, 0.2):
        clock = start(0.5)
        assert not await_frame(after(*[10.0] * 8), clock.ready, 0.0, clock.rehearse, timeout_s)
        assert clock.now_s == pytest.approx(timeout_s, abs=1e-3)
