"""What frames cost, learnt from frames; and streams that go on while a long prompt is taken in, in simulated time."""

import heapq
import itertools

import pytest

from hyperlane.head.costs import LEAST, UNKNOWN, FrameCosts
from hyperlane.head.lane import Lane
from hyperlane.head.scheduler import Lanes, Policy, schedule


def cost_us(rows, tokens, position=0):
    """A stage whose decode rows and prompts are run one after the other, with attention that grows."""
    decode = 4000 + 2000 * rows if rows else 0
    prompt = 2000 + tokens * (1000 + position / 10) if tokens else 0
    return decode + prompt


def cpu_cost_us(rows, tokens, position=0):
    """Measured with SmolLM2-135M on one core: a piece reads all of its past, and shares the weights with rows."""
    decode = 4000 + 3500 * rows if rows else 0
    prompt = 3800 + 7 * position + tokens * (1900 + 0.6 * position) if tokens else 0
    return decode + prompt - (2800 if rows and tokens else 0)


def learnt(frames=60):
    costs = FrameCosts()
    for number in range(frames):
        costs.note(4, 0, cost_us(4, 0))
        costs.note(0, (8, 64, 16)[number % 3], cost_us(0, (8, 64, 16)[number % 3]))
    return costs


def test_before_anything_is_known_a_frame_has_room_for_a_few_tokens():
    costs = FrameCosts()
    assert costs.room(4, 4, 1.0) == UNKNOWN
    costs.note(4, 0, 10_000.0)
    assert costs.room(4, 4, 1.0) == UNKNOWN


def test_a_frame_has_room_for_what_takes_as_long_as_its_decode_rows():
    # 12 ms for 4 rows: 0.8 of that for a prompt is 2 ms and some 7 tokens.
    assert 6 <= learnt().room(4, 4, 1.0) <= 9
    # A frame without decode rows may take as long as one with them.
    assert 18 <= learnt().room(0, 4, 1.0) <= 21
    assert learnt().room(4, 4, 4.0) > 35


def test_a_prompt_is_never_starved():
    assert learnt().room(4, 4, 0.01) == LEAST


def test_frames_of_one_size_are_enough_to_know_what_a_token_costs():
    costs = FrameCosts()
    for _ in range(10):
        costs.note(1, 0, 6000)
        costs.note(0, 64, 66_000)
    assert 3 <= costs.room(1, 1, 1.0) <= 6


def test_prompts_beside_decode_rows_teach_as_well():
    costs = FrameCosts()
    for _ in range(10):
        costs.note(4, 0, cost_us(4, 0))
    for tokens in (4, 8, 16, 4, 8, 16) * 5:
        costs.note(4, tokens, cost_us(4, tokens))
    assert 6 <= costs.room(4, 4, 1.0) <= 9


def test_what_a_device_costs_now_is_what_counts():
    costs = learnt()
    for _ in range(200):
        costs.note(4, 0, 2 * cost_us(4, 0))
        costs.note(0, 64, cost_us(0, 64) / 2)
    assert costs.room(4, 4, 1.0) > 25


def with_a_long_past():
    """4 rows in 18 ms; a piece of 2 tokens in 40 ms, of 64 in 300."""
    costs = FrameCosts()
    for number in range(60):
        costs.note(4, 0, cpu_cost_us(4, 0))
        costs.note(0, (2, 64, 16)[number % 3], cpu_cost_us(0, (2, 64, 16)[number % 3], 4000))
    return costs


def test_a_piece_rides_with_the_rows_where_it_costs_little_whatever_its_size():
    assert learnt().piece(4, 2, 2, 1.0) == 0
    assert FrameCosts().piece(4, 2, 2, 1.0) == 0


def test_a_piece_that_reads_a_long_past_has_a_frame_of_its_own_where_stages_can_work_meanwhile():
    assert 2 <= with_a_long_past().piece(4, 2, 2, 1.0) <= 8
    assert with_a_long_past().piece(4, 2, 2, 4.0) > 2 * with_a_long_past().piece(4, 2, 2, 1.0)
    assert with_a_long_past().piece(4, 1, 1, 1.0) == 0
    assert with_a_long_past().piece(4, 2, 4, 1.0) == 0


def test_pieces_differ_in_size_where_no_line_could_be_learnt_from_them():
    costs = FrameCosts()
    for _ in range(200):
        costs.note(4, 0, cpu_cost_us(4, 0))
        costs.note(0, size := costs.room(4, 4, 1.0), cpu_cost_us(0, size, 4000))
    assert costs.piece(4, 2, 2, 1.0) > 0


class Pipeline:
    """Stages of programmed cost behind the head's own scheduler, in simulated time."""

    def __init__(self, stages, streams, cost=cost_us, **policy):
        self.cost_us = cost
        self.policy = Policy(max_step_tokens=64 + streams + 1, max_frames=2 * stages, frames_beside=stages, **policy)
        self.lanes = Lanes(streams + 1)
        self.costs = FrameCosts()
        self.free_us = [0.0] * stages
        self.back = []
        self.order = itertools.count()
        self.now_us = 0.0
        self.tokens_us = {}

    def arrives(self, number, prompt):
        self.lanes.waiting.append(Lane(number, prompt, prompt))
        self.lanes.admit()
        self.send()

    def send(self):
        while (plan := schedule(self.lanes, self.policy, self.costs.room, self.costs.piece)) is not None:
            flight = self.lanes.depart(plan)
            tokens = sum(share.count for share in plan.shares if share.count > 1)
            rows = sum(share.count == 1 for share in plan.shares)
            position = max((share.start for share in plan.shares if share.count > 1), default=0)
            each, when = self.cost_us(rows, tokens, position) / len(self.free_us), self.now_us
            for stage, free in enumerate(self.free_us):
                when = self.free_us[stage] = max(when, free) + each
            heapq.heappush(self.back, (when, next(self.order), flight, rows, tokens, each * len(self.free_us)))

    def turn(self):
        self.now_us, _, flight, rows, tokens, cost = heapq.heappop(self.back)
        self.costs.note(rows, tokens, cost)
        for share in self.lanes.arrive(flight.step).plan.shares:
            if share.wanted:
                self.lanes.grow(self.lanes.running[share.lane], whole=False)
                self.tokens_us.setdefault(share.lane, []).append(self.now_us)
        self.send()

    def gaps_us(self, after_us):
        """The 95th percentile of the time between two tokens of the streams that have one at all times."""
        times = [[when for when in tokens if when >= after_us] for tokens in self.tokens_us.values()]
        gaps = sorted(b - a for stream in times for a, b in itertools.pairwise(stream))
        return gaps[len(gaps) * 95 // 100]


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("streams", [1, 4, 8])
def test_streams_are_at_most_half_as_fast_while_a_long_prompt_is_taken_in(stages, streams):
    pipeline = Pipeline(stages, streams, decode_groups=stages)
    for number in range(streams):
        pipeline.arrives(number, 100)
    for _ in range(400):
        pipeline.turn()
    usual = pipeline.gaps_us(pipeline.now_us / 2)
    began = pipeline.now_us
    pipeline.arrives(99, 4000)
    while 99 not in pipeline.tokens_us:
        pipeline.turn()
    assert pipeline.gaps_us(began) <= 2 * usual
    alone = sum(cost_us(0, 64, position) for position in range(0, 4000, 64)) / stages
    assert pipeline.now_us - began < 8 * alone


@pytest.mark.parametrize(("stages", "streams"), [(2, 1), (2, 4), (2, 8), (4, 8)])
def test_where_every_piece_reads_a_long_past_one_for_a_round_of_rows_disturbs_streams_less(stages, streams):
    def disturbed(*, apart):
        pipeline = Pipeline(stages, streams, cpu_cost_us, decode_groups=stages)
        if not apart:
            pipeline.costs.piece = lambda *_: 0
        for number in range(streams):
            pipeline.arrives(number, 100)
        for _ in range(200):
            pipeline.turn()
        began = pipeline.now_us
        pipeline.arrives(99, 4000)
        while 99 not in pipeline.tokens_us:
            pipeline.turn()
        return pipeline.gaps_us(began), pipeline.now_us - began

    gaps_us, ttft_us = disturbed(apart=False)
    apart_gaps_us, apart_ttft_us = disturbed(apart=True)
    assert apart_gaps_us < 0.85 * gaps_us
    assert apart_ttft_us < 1.15 * ttft_us


def test_streams_and_prompts_share_the_time_evenly():
    pipeline = Pipeline(1, 4)
    pipeline.arrives(0, 100)
    for _ in range(50):
        pipeline.turn()
    began = pipeline.now_us
    for number in (1, 2, 3):
        pipeline.arrives(number, 1000)
    while len(pipeline.tokens_us) < 4:
        pipeline.turn()
    alone = 3 * sum(cost_us(0, 64, position) for position in range(0, 1000, 64))
    assert pipeline.now_us - began < 2.5 * alone
    assert len([when for when in pipeline.tokens_us[0] if when > began]) > 30
