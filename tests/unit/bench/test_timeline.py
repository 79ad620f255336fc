"""Stages' own times laid on one clock, and the picture of them."""

import xml.etree.ElementTree as ElementTree

import pytest

from hyperlane.bench.picture import Panel, svg
from hyperlane.bench.timeline import Timeline, timeline
from hyperlane.core import StageTiming
from hyperlane.head.timings import FrameTiming

HOP_US = 100


def ring(costs_us, gap_us=0):
    """Frames that pass through FIFO stages one after the other: what they would say, and when each was computed."""
    stages = len(costs_us[0])
    ready, sent = [0] * stages, [0] * stages
    frames, spans = [], []
    for number, costs in enumerate(costs_us):
        left = at = number * gap_us
        records = []
        for stage, cost in enumerate(costs):
            header = max(at + HOP_US, ready[stage])
            begin, end = header + 20, header + 20 + cost
            records.append(StageTiming(stage, header - ready[stage], cost, 20, sent[stage], 0))
            spans.append((stage, begin, end))
            sent[stage], ready[stage] = 30, end + 30
            at = end + 30
        frames.append(FrameTiming(at + HOP_US - left, number + 1, 0, False, tuple(records), left * 1e-6))
    return frames, spans


def test_stages_are_laid_where_their_frames_were():
    frames, spans = ring([(5000, 4000), (3000, 4500), (2000, 1000), (6000, 6000)], gap_us=500)
    line = timeline(frames)
    first = min(begin for _, begin, _ in spans)
    found = sorted((bar.stage, round(1e6 * bar.begin_s), round(1e6 * bar.end_s)) for bar in line.bars)
    for (stage, begin, end), (wanted, wanted_begin, wanted_end) in zip(found, sorted(spans), strict=True):
        assert stage == wanted
        assert begin == pytest.approx(wanted_begin - first, abs=2 * HOP_US)
        assert end == pytest.approx(wanted_end - first, abs=2 * HOP_US)
    assert [bar.tokens for bar in line.bars if bar.stage == 1] == [1, 2, 3, 4]


def test_one_frame_at_a_time_leaves_every_other_stage_idle():
    frames, _ = ring([(5000, 5000)] * 20, gap_us=10_400)
    assert timeline(frames).bubble == pytest.approx(0.5, abs=0.03)


def test_frames_that_follow_each_other_leave_no_bubble_but_at_the_ends():
    frames, _ = ring([(5000, 5000)] * 20)
    assert timeline(frames).bubble == pytest.approx(1 / 21, abs=0.02)


def test_nothing_was_computed_without_frames():
    assert timeline([]) == Timeline(0, ())
    assert timeline([]).bubble == 0.0


def test_the_picture_is_well_formed_and_has_a_bar_for_each_frame_and_stage():
    frames, _ = ring([(5000, 4000, 4000)] * 7)
    line = timeline(frames)
    text = svg(
        [Panel("prompt of <64> & more", line, is_prompt=True), Panel("nothing", Timeline(0, ()), is_prompt=False)]
    )
    root = ElementTree.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{name}rect/{name}title")) == 21
    titles = [found.text for found in root.findall(f"{name}text")]
    assert (
        f"prompt of <64> & more: {1e3 * line.length_s:.0f} ms, {line.bubble:.1%} of the stages' time is bubble"
        in titles
    )
    assert {"stage 0", "stage 1", "stage 2"} <= set(titles)
    width = float(root.get("width"))
    assert all(
        float(bar.get("x", 0)) + float(bar.get("width", "0").rstrip("%")) <= width for bar in root.iter(f"{name}rect")
    )
