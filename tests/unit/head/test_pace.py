"""Speeds of late: only where nothing stood still between two frames."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperlane.core import Achieved, Prediction
from hyperlane.head.options import HeadOptions
from hyperlane.head.pace import FEWEST, Pace
from hyperlane.testing.toy import toy_facts, toy_plan


def run(pace: Pace, start_s: float, step_s: float, streams: int, frames: int = 2 * FEWEST, tokens: int = 1) -> None:
    """A prompt's frame, then so many decode frames."""
    pace.note(start_s, 0, streams=streams, is_decode=False)
    for number in range(1, frames + 1):
        pace.note(start_s + number * step_s, tokens, streams=streams, is_decode=True)


def test_nothing_is_told_before_there_is_enough():
    pace = Pace()
    assert pace.achieved() == Achieved()
    run(pace, 0.0, 0.01, 1, frames=FEWEST)
    assert pace.achieved().token_s == 0.0


def test_one_stream_is_told_and_time_between_requests_does_not_count():
    pace = Pace()
    run(pace, 0.0, 0.01, 1)
    run(pace, 1000.0, 0.01, 1)
    assert pace.achieved().token_s == pytest.approx(0.01)
    assert pace.achieved().streams == 0


def test_of_many_streams_the_most_count_with_all_their_tokens():
    pace = Pace()
    run(pace, 0.0, 0.01, 1)
    run(pace, 10.0, 0.02, 4, tokens=2)
    run(pace, 20.0, 0.02, 3, tokens=3)
    assert pace.achieved().streams == 4
    assert pace.achieved().many_rate == pytest.approx(100.0)


def test_a_frame_with_a_prompt_in_it_is_no_measure():
    pace = Pace()
    for number in range(4 * FEWEST):
        pace.note(number * 0.1, 2, streams=2, is_decode=number % 2 == 0)
    assert pace.achieved().streams == 0


def test_the_first_token_is_told_with_its_prompt():
    pace = Pace()
    pace.first(0.25, 300)
    assert (pace.achieved().ttft_s, pace.achieved().prompt_tokens) == (0.25, 300)


def test_a_head_keeps_in_flight_what_its_plan_was_predicted_with():
    plan = toy_plan(toy_facts(), stages=2)
    assert (HeadOptions().policy(plan).max_frames, HeadOptions().policy(plan).decode_groups) == (4, 2)
    predicted = replace(plan, prediction=Prediction(0.01, 1.0, 512, 100.0, 8, groups=3, frames=6, stages_s=(0.0, 0.0)))
    policy = HeadOptions().policy(predicted)
    assert (policy.max_frames, policy.decode_groups) == (6, 3)
    asked = HeadOptions(frames_in_flight=1, decode_groups=1).policy(predicted)
    assert (asked.max_frames, asked.decode_groups) == (1, 1)


def test_the_first_token_is_told_of_the_prompt_that_is_nearest_in_length_to_the_one_asked_for():
    pace = Pace()
    for seconds, prompt in ((0.5, 500), (0.6, 500), (2.0, 2000), (0.1, 16)):
        pace.first(seconds, prompt)
    assert (pace.achieved(512).ttft_s, pace.achieved(512).prompt_tokens) == (0.6, 500)
    assert pace.achieved(9000).prompt_tokens == 2000
    assert pace.achieved().prompt_tokens == 16
