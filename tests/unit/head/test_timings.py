"""Medians of what stages say, over a sliding window."""

from hyperlane.core import StageTiming
from hyperlane.head.timings import WINDOW, FrameTiming, Timings
from hyperlane.testing.toy import toy_facts, toy_plan

PLAN = toy_plan(toy_facts(), stages=2)


def frame(ring_us=1000.0, computed_us=300, alone=True, tokens=2):
    stages = tuple(StageTiming(index, 10 + index, computed_us, 5, 7, 400) for index in range(2))
    return FrameTiming(ring_us, tokens, 100, alone, stages)


def test_nothing_is_zero_before_a_frame_came_back():
    timings = Timings()
    assert (timings.ring_us, timings.hop_us) == (0.0, 0.0)
    assert [stage.computed_us for stage in timings.stages(PLAN)] == [0.0, 0.0]


def test_a_hop_is_what_the_engines_leave_of_the_ring_over_all_hops():
    timings = Timings()
    timings.note(frame(1000.0, 350))
    assert timings.hop_us == (1000.0 - 700) / 3


def test_frames_that_waited_behind_others_do_not_count_as_overhead():
    timings = Timings()
    timings.note(frame(1000.0, 350))
    for _ in range(5):
        timings.note(frame(9000.0, 350, alone=False))
    assert timings.hop_us == 100.0
    assert timings.ring_us == 9000.0


def test_the_slowest_hop_of_a_hundred_is_told_beside_the_median():
    timings = Timings()
    timings.note(frame(1000.0, 350))
    assert timings.hop_p99_us == 0.0
    for _ in range(98):
        timings.note(frame(1000.0, 350))
    for _ in range(2):
        timings.note(frame(4000.0, 350))
    assert (timings.hop_us, timings.hop_p99_us) == (100.0, 1100.0)


def test_stages_are_told_apart_and_bytes_counted_by_token():
    timings = Timings()
    timings.note(frame(tokens=4))
    timings.note(frame(tokens=1))
    first, second = timings.stages(PLAN)
    assert (first.computed_us, first.waited_us, first.overhead_us) == (300.0, 10.0, 5.0)
    assert second.waited_us == 11.0
    assert first.sent_bytes_per_token == 800 / 5
    assert timings.sent_bytes_per_token == 200 / 5
    assert [first.plan, second.plan] == list(PLAN.stages)


def test_old_frames_are_forgotten():
    timings = Timings()
    for _ in range(WINDOW):
        timings.note(frame(100.0))
    for _ in range(WINDOW):
        timings.note(frame(500.0))
    assert timings.ring_us == 500.0
