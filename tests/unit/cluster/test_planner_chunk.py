"""The chunk of a prompt: small where stages are many, large where a frame costs much, and never long in the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlane.cluster.planner.chunk import LONGEST_S, LONGEST_TOKENS, WORTH, best_chunk, pieces
from hyperlane.cluster.planner.layout import layout_of
from hyperlane.cluster.planner.partitioner import KnapsackPartitioner
from hyperlane.cluster.planner.predict import Predictor
from hyperlane.core import PROMPT_CHUNKS
from hyperlane.head.options import HeadOptions
from hyperlane.head.scheduler import Policy
from hyperlane.testing.clusters import Machine, made_up_cluster, made_up_workload
from hyperlane.testing.lanes import lanes_with, send_all


def chosen(stages: int, *, step_ms: float = 0.1, rtt_ms: float = 0.1, row_ms: float = 1.0, **workload: int) -> int:
    """For a prompt of 512 tokens over so many equal stages of two layers."""
    facts = made_up_cluster([Machine(1.0, row_ms=row_ms, step_ms=step_ms)] * stages, rtt_ms=rtt_ms)
    wanted = made_up_workload(2 * stages, prompt_tokens=512, **workload)
    predictor = Predictor(facts, replace(wanted, chunk_choices=PROMPT_CHUNKS))
    return predictor.best_chunk(layout_of([(n, 2 * n, 2 * n + 2) for n in range(stages)]))


def test_more_stages_have_smaller_chunks():
    found = [chosen(stages, step_ms=4.0, row_ms=0.1) for stages in (1, 2, 4, 8)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


def test_a_frame_that_costs_much_has_larger_chunks():
    cheap, dear = (chosen(4, step_ms=step_ms, row_ms=0.1) for step_ms in (0.0, 20.0))
    assert cheap < dear


def test_a_network_with_a_long_delay_has_larger_chunks():
    """Few frames are in flight: with small ones the pipeline would wait for them to come back."""
    near, far = (chosen(3, rtt_ms=rtt_ms, row_ms=0.05) for rtt_ms in (0.1, 60.0))
    assert near < far


def test_no_chunk_keeps_a_stage_for_long():
    """A token takes 22 ms here, so a stage may be busy for a quarter of a second."""
    size = chosen(1, step_ms=20.0, row_ms=1.0)
    assert 0.02 + 2 * size * 1e-3 <= LONGEST_S < 0.02 + 4 * size * 1e-3


def test_a_slow_model_may_take_as_long_as_a_few_of_its_tokens():
    def busy_s(size: int) -> float:
        return 0.05 * size

    token_s = 64 * 0.05 / LONGEST_TOKENS
    assert best_chunk(PROMPT_CHUNKS, lambda size: 1.0 / size, busy_s, token_s) == 64


def test_where_every_chunk_takes_long_the_smallest_is_taken():
    assert best_chunk(PROMPT_CHUNKS, lambda size: 1.0 / size, lambda _: 10.0, 0.01) == PROMPT_CHUNKS[0]


@given(st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5))
def test_it_is_the_smallest_that_is_as_good_as_the_best(seconds):
    by_size = dict(zip(PROMPT_CHUNKS, seconds, strict=True))
    found = best_chunk(PROMPT_CHUNKS, by_size.__getitem__, lambda _: 0.0, 0.01)
    limit = min(seconds) * (1 + WORTH)
    assert by_size[found] <= limit
    assert all(by_size[size] > limit for size in PROMPT_CHUNKS if size < found)


@given(prompt=st.integers(1, 900), chunk=st.integers(1, 256))
def test_pieces_are_what_the_scheduler_sends(prompt, chunk):
    lanes = lanes_with(prompt)
    plans = send_all(lanes, Policy(max_step_tokens=2 * chunk + 2, prompt_chunk=chunk, max_frames=1000))
    assert [share.count for plan in plans for share in plan.shares] == pieces(prompt, chunk)
    if chunk > 1 < prompt:
        assert min(pieces(prompt, chunk)) > 1


def test_a_plan_tells_the_head_and_a_chunk_by_hand_goes_first():
    facts = made_up_cluster([Machine(1.0, row_ms=0.1, step_ms=4.0)] * 2, rtt_ms=0.1)
    workload = replace(made_up_workload(4, prompt_tokens=512), chunk_choices=PROMPT_CHUNKS)
    choice = KnapsackPartitioner(everyone=True).plan(facts, workload)
    size = choice.candidate.best.forecast.chunk_tokens
    assert size != workload.chunk_tokens
    assert choice.plan.prediction.chunk_tokens == size
    assert HeadOptions(max_step_tokens=600).policy(choice.plan).chunk == size
    assert HeadOptions(max_step_tokens=600, prompt_chunk=48).policy(choice.plan).chunk == 48
    unmeasured = replace(choice.plan, prediction=None)
    assert HeadOptions(max_step_tokens=600).policy(unmeasured).chunk == 64


@pytest.mark.parametrize("size", PROMPT_CHUNKS)
def test_the_time_that_a_plan_says_is_that_of_its_chunk(size):
    facts = made_up_cluster([Machine(1.0, row_ms=0.1, step_ms=4.0)] * 2, rtt_ms=0.1)
    workload = replace(made_up_workload(4, prompt_tokens=512), chunk_choices=(size,))
    predictor, layout = Predictor(facts, workload), layout_of([(0, 0, 2), (1, 2, 4)])
    said = predictor.forecast(layout)
    assert said.chunk_tokens == size
    assert said.ttft_s == Predictor(facts, replace(workload, chunk_tokens=size)).ttft_s(layout)
