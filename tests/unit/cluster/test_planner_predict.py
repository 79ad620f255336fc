"""Predictions against a simulated ring, driven by the head's own scheduler or by hand."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlane.cluster.planner.curve import Curve
from hyperlane.cluster.planner.facts import HeadCost
from hyperlane.cluster.planner.layout import Layout, layout_of
from hyperlane.cluster.planner.predict import Predictor, group_sizes
from hyperlane.testing.clusters import Machine, made_up_cluster, made_up_workload
from hyperlane.testing.simulated_head import simulated_period_s, simulated_ttft_s

calm = settings(deadline=None, max_examples=60)


@st.composite
def cases(draw, streams: int | None = None) -> tuple[Predictor, Layout]:
    """A pipeline of one to four stages whose stages, links and head differ by up to ten times."""
    some = st.floats(0.1, 1.0)
    count = draw(st.integers(1, 4))
    made = [
        Machine(draw(some), row_ms=draw(some) / 5, step_ms=draw(some), embed_ms=draw(some), project_ms=draw(some))
        for _ in range(count)
    ]
    distances = [[draw(some) for _ in range(count + 1)] for _ in range(count + 1)]
    head = HeadCost(draw(some) / 5e3, draw(some) / 5e3, draw(some) / 5e3)
    facts = made_up_cluster(made, rtt_ms=distances, mb_per_s=draw(st.sampled_from([5.0, 100.0])), head=head)
    sizes = draw(st.lists(st.integers(1, 6), min_size=count, max_size=count))
    ends = [sum(sizes[:place]) for place in range(count + 1)]
    workload = made_up_workload(
        ends[-1],
        streams=streams or draw(st.integers(1, 12)),
        prompt_tokens=draw(st.integers(1, 400)),
        chunk_tokens=64,
        frames_in_flight=draw(st.sampled_from([None, 1, 2, 3])),
        min_group_rows=draw(st.integers(1, 2)),
    )
    return Predictor(facts, workload), layout_of(zip(range(count), ends, ends[1:], strict=False))


@calm
@given(case=cases())
def test_one_stream_has_a_token_as_often_as_predicted(case):
    predictor, layout = case
    assert simulated_period_s(predictor, layout, 1, 1) == pytest.approx(predictor.token_s(layout), rel=1e-6)


@calm
@given(case=cases())
def test_the_first_token_comes_when_predicted(case):
    predictor, layout = case
    first_s = simulated_ttft_s(predictor, layout) + predictor.facts.head.publish_s
    assert first_s == pytest.approx(predictor.ttft_s(layout), rel=1e-6)


@calm
@given(case=cases())
def test_equal_groups_in_flight_have_the_predicted_period(case):
    predictor, layout = case
    streams = predictor.workload.streams
    for sizes in predictor.splits(streams):
        if len(set(sizes)) == 1:
            predicted = predictor.period_s(layout, sizes)
            busy = predictor.head_s(sizes)
            simulated = max(busy, simulated_period_s(predictor, layout, len(sizes), streams))
            assert simulated == pytest.approx(predicted, rel=0.02)


@calm
@given(case=cases())
def test_the_chosen_number_of_groups_is_as_fast_as_predicted(case):
    predictor, layout = case
    streams = predictor.workload.streams
    groups, predicted = predictor.best_groups(layout, streams)
    sizes = group_sizes(streams, groups)
    simulated = max(predictor.head_s(sizes), simulated_period_s(predictor, layout, groups, streams))
    assert simulated == pytest.approx(predicted, rel=0.1)


def test_a_window_of_one_frame_lets_no_chunk_overlap():
    facts = made_up_cluster([Machine(1.0), Machine(1.0)], rtt_ms=0.0)
    alone = made_up_workload(2, prompt_tokens=256, chunk_tokens=64, frames_in_flight=1)
    layout = layout_of([(0, 0, 1), (1, 1, 2)])
    predictor = Predictor(facts, alone)
    overlapping = Predictor(facts, replace(alone, frames_in_flight=2))
    stage = predictor.chunk(layout).stages[0]
    assert predictor.ttft_s(layout) == pytest.approx(8 * stage, rel=1e-3)
    assert overlapping.ttft_s(layout) == pytest.approx(5 * stage, rel=1e-3)


def test_groups_are_filled_as_the_scheduler_fills_them():
    assert group_sizes(8, 3) == (3, 3, 2)
    assert group_sizes(9, 4) == (3, 3, 3)
    assert group_sizes(5, 1) == (5,)


@given(
    sizes=st.lists(st.integers(1, 64), min_size=1, max_size=6, unique=True),
    seconds=st.lists(st.floats(0, 1), min_size=6, max_size=6),
    at=st.tuples(st.floats(0, 100), st.floats(0, 100)),
)
def test_a_cost_curve_never_falls_and_goes_through_what_ascends(sizes, seconds, at):
    points = tuple(zip(sorted(sizes), seconds, strict=False))
    curve = Curve(points)
    low, high = sorted(at)
    assert curve.seconds(low) <= curve.seconds(high) + 1e-12
    if list(points) == sorted(points, key=lambda point: point[1]):
        for size, value in points:
            assert curve.seconds(size) == pytest.approx(value)


@pytest.mark.parametrize("points", [(), ((0, 1.0),), ((2, 1.0), (1, 2.0)), ((1, -1.0),), ((1, float("nan")),)])
def test_a_curve_of_impossible_points_is_refused(points):
    with pytest.raises(ValueError, match="curve"):
        Curve(points)


def test_a_curve_is_interpolated_between_and_beyond_its_points():
    curve = Curve(((1, 1.0), (4, 4.0), (8, 6.0)))
    assert [curve.seconds(size) for size in (0, 0.5, 1, 2, 6, 12)] == pytest.approx([0, 1.0, 1.0, 2.0, 5.0, 8.0])
    assert statistics.mean(Curve.flat(2.0).seconds(size) for size in (1, 7, 40)) == 2.0
