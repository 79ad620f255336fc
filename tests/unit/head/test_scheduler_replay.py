"""Which frames compute answers again after a lost pipeline."""

import pytest

from hyperlane.head.lane import Lane
from hyperlane.head.scheduler import Lanes, Policy, schedule
from hyperlane.testing.lanes import come_back, decoding, lane, rows, send_all


def test_answers_are_replayed_without_waiting_and_others_decode_meanwhile():
    lanes = decoding(1)
    lanes.waiting.append(Lane(7, 1, 4))
    lanes.admit()
    plans = send_all(lanes, Policy(max_frames=10))
    assert [rows(plan) for plan in plans] == [[(0, 1, 1, True), (7, 0, 1, False)], [(7, 1, 2, False)]]
    assert [share.one_by_one for plan in plans for share in plan.shares] == [False, False, True]
    come_back(lanes)
    assert rows(schedule(lanes, Policy(max_frames=10))) == [(0, 2, 1, True), (7, 3, 1, True)]


def replayed(number: int, length: int, kept: int = 0) -> Lane:
    """A lane that starts anew, its prompt of two tokens behind it."""
    lane = Lane(number, 2, length, sent=2, kept=kept, kept_from=1 if kept else 0)
    lane.slot = number
    return lane


def test_answers_are_replayed_in_pieces_those_with_the_least_left_first():
    lanes = Lanes(8)
    lanes.running = {n: replayed(n, length) for n, length in enumerate((50, 8, 23))}
    plans = send_all(lanes, Policy(replayed_tokens=16, max_frames=20))
    assert [rows(plan) for plan in plans] == [
        [(1, 2, 5, False), (2, 2, 16, False)],
        [(0, 2, 16, False), (1, 7, 1, True), (2, 18, 4, False)],
        [(0, 18, 16, False)],
        [(0, 34, 15, False)],
    ]
    come_back(lanes)
    come_back(lanes)
    assert rows(schedule(lanes, Policy(max_frames=20))) == [(0, 49, 1, True), (1, 8, 1, True), (2, 22, 1, True)]


def test_a_piece_that_is_computed_again_is_kept_whole_or_not_at_all():
    lanes = Lanes(8)
    lanes.running = {3: replayed(3, 40, kept=25)}
    shares = [share for plan in send_all(lanes, Policy(replayed_tokens=16, max_frames=20)) for share in plan.shares]
    assert [(share.start, share.count, share.skip_from, share.one_by_one) for share in shares] == [
        (2, 16, 1, True),
        (18, 7, 1, True),
        (25, 14, 0, True),
        (39, 1, 0, False),
    ]


@pytest.mark.parametrize("step_tokens", [4, 9, 40])
def test_what_is_computed_again_fits_the_frame_beside_prompts_and_streams(step_tokens):
    lanes = decoding(2)
    lanes.running |= {4: replayed(4, 60), 5: replayed(5, 61)}
    lanes.waiting.append(lane(9, 30))
    lanes.admit()
    while lanes.running[9].sent < 30 or lanes.running[5].sent < 60 or lanes.flights:
        for plan in send_all(lanes, Policy(max_step_tokens=step_tokens, prompt_chunk=8, max_frames=2)):
            assert sum(share.count for share in plan.shares) <= step_tokens
        come_back(lanes)
