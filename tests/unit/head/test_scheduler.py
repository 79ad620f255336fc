"""The scheduler against a simulated ring: every lane is served, slots and budgets are kept, none starves."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlane.errors import ProtocolError
from hyperlane.head.lane import Lane
from hyperlane.head.scheduler import Lanes, Policy, schedule
from hyperlane.testing.lanes import come_back, decoding, lane, lanes_with, rows, send_all

# --- rules -------------------------------------------------------------------------------------------------------


def test_all_known_last_tokens_leave_in_one_frame():
    lanes = decoding(5)
    assert rows(schedule(lanes, Policy())) == [(number, 1, 1, True) for number in range(5)]


def test_chunks_of_one_prompt_follow_each_other_without_waiting():
    lanes = lanes_with(300)
    plans = send_all(lanes, Policy(max_step_tokens=160, prompt_chunk=120, max_frames=4))
    assert [rows(plan) for plan in plans] == [[(0, 0, 120, False)], [(0, 120, 120, False)], [(0, 240, 60, True)]]


def test_a_prompt_is_cut_at_the_same_places_whatever_runs_beside_it():
    policy = Policy(max_step_tokens=24, prompt_chunk=16, max_frames=2)
    for others in range(7):
        lanes = decoding(others)
        lanes.waiting.append(lane(99, 50))
        lanes.admit()
        pieces = []
        while lanes.running[99].sent < 50:
            for plan in send_all(lanes, policy):
                pieces += [(share.start, share.count) for share in plan.shares if share.lane == 99]
            come_back(lanes)
        assert pieces == [(0, 16), (16, 16), (32, 16), (48, 2)]


def test_a_prompt_joins_the_frame_of_those_that_decode():
    lanes = decoding(2)
    lanes.waiting.append(lane(9, 20))
    lanes.admit()
    assert rows(schedule(lanes, Policy(max_step_tokens=16))) == [(0, 1, 1, True), (1, 1, 1, True), (9, 0, 12, False)]


@pytest.mark.parametrize(
    ("chunk", "start", "prompt", "counts"),
    [
        (16, 0, 17, [17]),
        (16, 0, 18, [16, 2]),
        (16, 0, 33, [16, 17]),
        (16, 15, 17, [2]),
        (16, 15, 33, [16, 2]),
        (16, 15, 40, [17, 8]),
        (16, 15, 18, [3]),
        (2, 0, 5, [2, 3]),
        (2, 1, 5, [2, 2]),
        (1, 0, 3, [1, 1, 1]),
        (16, 4, 5, [1]),
    ],
)
def test_no_token_of_a_prompt_is_left_alone_wherever_it_goes_on(chunk, start, prompt, counts):
    lanes = lanes_with(prompt)
    lanes.running[0].sent = start
    plans = send_all(lanes, Policy(max_step_tokens=2 * chunk + 1, prompt_chunk=chunk, max_frames=100))
    assert [share.count for plan in plans for share in plan.shares] == counts


@pytest.mark.parametrize(
    ("room", "parts"), [(7, [7, 7, 2]), (15, [14, 2]), (16, [16]), (3, [3, 3, 3, 3, 2, 2]), (2, [2] * 8)]
)
def test_beside_streams_a_chunk_goes_in_parts_none_of_a_single_token(room, parts):
    policy = Policy(max_step_tokens=24, prompt_chunk=16, max_frames=1)
    lanes = decoding(2)
    lanes.waiting.append(lane(9, 16))
    lanes.admit()
    taken = []
    while lanes.running[9].sent < 16:
        plan = schedule(lanes, policy, lambda *_: room)
        assert [share.count for share in plan.shares[:2]] == [1, 1]
        taken += [share.count for share in plan.shares[2:]]
        lanes.depart(plan)
        come_back(lanes)
    assert taken == parts


@pytest.mark.parametrize("room", range(2, 40))
def test_prompts_that_share_the_room_are_taken_in_without_single_tokens(room):
    lanes = decoding(1)
    lanes.waiting.extend(lane(number, 8 + number) for number in (10, 11, 12, 13))
    lanes.admit()
    policy = Policy(max_step_tokens=24, prompt_chunk=16, max_frames=1)
    for _ in range(60):
        plan = schedule(lanes, policy, lambda *_: room)
        parts = [share for share in plan.shares if share.start < lanes.running[share.lane].prompt]
        assert all(share.count > 1 for share in parts)
        lanes.depart(plan)
        come_back(lanes)
        if all(lanes.running[number].sent >= 8 + number for number in (10, 11, 12, 13)):
            break
    else:
        pytest.fail("a prompt was not taken in")


def test_room_is_asked_for_by_rows_usual_rows_and_how_much_more_time_there_is():
    asked = []
    lanes = decoding(4)
    lanes.waiting.extend([lane(8, 100), lane(9, 100)])
    lanes.admit()
    policy = Policy(max_frames=4, frames_beside=3, decode_groups=2)

    def room(*question):
        asked.append(question)
        return 10

    while (plan := schedule(lanes, policy, room)) is not None:
        lanes.depart(plan)
    assert asked == [(2, 2, 1.0), (2, 2, 1.0), (0, 2, 1.0)]


def test_a_piece_in_a_frame_of_its_own_leaves_once_for_each_time_that_all_groups_left():
    lanes = decoding(4)
    lanes.waiting.append(lane(8, 100))
    lanes.admit()
    policy = Policy(max_frames=6, frames_beside=2, decode_groups=2)
    left = []
    for _ in range(6):
        while (plan := schedule(lanes, policy, piece=lambda *_: 5)) is not None:
            lanes.depart(plan)
            left.append(tuple(share.count for share in plan.shares))
        flight = lanes.arrive(lanes.flights[0].step)
        for share in flight.plan.shares:
            if share.wanted:
                lanes.grow(lanes.running[share.lane], whole=False)
    assert left[:6] == [(1, 1), (1, 1), (5,), (1, 1), (1, 1), (5,)]


def test_answers_that_are_replayed_do_not_hold_up_pieces_in_frames_of_their_own():
    lanes = decoding(1)
    lanes.waiting.extend([Lane(7, 10, 400, sent=10), lane(8, 100)])
    lanes.admit()
    policy = Policy(max_frames=100, frames_beside=2, decode_groups=1)
    prompts = 0
    for _ in range(12):
        plan = schedule(lanes, policy, piece=lambda *_: 5)
        prompts += any(share.lane == 8 for share in plan.shares)
        lanes.depart(plan)
    assert prompts >= 3


def test_a_batch_is_split_over_the_stages_only_when_groups_keep_their_rows():
    policy = Policy(max_frames=8, decode_groups=2, min_group_rows=2)
    assert [len(plan.shares) for plan in send_all(decoding(3), policy)] == [3]
    assert [len(plan.shares) for plan in send_all(decoding(5), policy)] == [3, 2]


@pytest.mark.parametrize(("groups", "count"), [(2, 16), (2, 7), (3, 16), (4, 16)])
def test_groups_become_ranges_of_neighbouring_slots_however_their_prompts_came(groups, count):
    policy = Policy(max_step_tokens=40, prompt_chunk=16, max_frames=8, frames_beside=8, decode_groups=groups)
    lanes = lanes_with(*[16] * count, slots=count)
    plans = []
    for _ in range(30 * groups):
        plans = [*plans, *send_all(lanes, policy)][-2 * groups :]
        come_back(lanes)
    size = -(-count // groups)
    for plan in plans:
        slots = [share.slot for share in plan.shares]
        assert slots == list(range(slots[0], slots[0] + len(slots)))
        assert slots[0] % size == 0
    assert sum(len(plan.shares) for plan in plans) == 2 * count


def test_lanes_that_decode_apart_come_together_again():
    lanes = decoding(2)
    policy = Policy(max_frames=4, max_step_tokens=1)
    send_all(lanes, policy)
    assert [len(flight.plan.shares) for flight in lanes.flights] == [1]
    come_back(lanes)
    assert len(send_all(lanes, Policy(max_frames=4))[0].shares) == 2


@pytest.mark.parametrize("asks_again", [False, True])
@pytest.mark.parametrize("prompt", [1, 2, 16, 17, 18, 40])
def test_a_lane_that_starts_anew_has_the_same_pieces_again(prompt, asks_again):
    policy = Policy(max_step_tokens=24, prompt_chunk=16, max_frames=4)
    lanes = lanes_with(prompt)
    one = lanes.running[0]
    first = _pieces_of(lanes, policy, until=prompt)
    if asks_again:
        one.ask_again()
        first += _pieces_of(lanes, policy, until=prompt)
    one.length = prompt + 5
    first += _pieces_of(lanes, policy, until=prompt + 5)
    one.restart()
    lanes = Lanes(8)
    lanes.waiting.append(one)
    lanes.admit()
    assert _pieces_of(lanes, policy, until=prompt + 5) == first


def _pieces_of(lanes: Lanes, policy: Policy, until: int) -> list[tuple[int, int]]:
    """What leaves of the only lane; answers come back and say nothing."""
    pieces = []
    while lanes.running[0].sent < until or lanes.flights:
        for plan in send_all(lanes, policy):
            pieces += [(share.start, share.count) for share in plan.shares]
        lanes.arrive(lanes.flights[0].step)
    return pieces


def test_a_lane_that_must_ask_again_repeats_its_position_in_a_frame_of_its_own():
    lanes = decoding(2)
    lanes.depart(schedule(lanes, Policy()))
    lanes.arrive(lanes.flights[0].step)
    lanes.running[0].ask_again()
    lanes.grow(lanes.running[1], whole=False)
    first, second = send_all(lanes, Policy(max_frames=2))
    assert first.whole_logits
    assert rows(first) == [(0, 1, 1, True)]
    assert not second.whole_logits
    assert rows(second) == [(1, 2, 1, True)]


def test_lanes_that_always_want_whole_logits_leave_every_other_frame_to_the_rest():
    lanes = decoding(3)
    lanes.running[0].whole = True
    kinds = []
    for _ in range(6):
        plan = schedule(lanes, Policy(max_frames=1))
        kinds.append(plan.whole_logits)
        flight = lanes.depart(plan)
        lanes.arrive(flight.step)
        for share in plan.shares:
            lanes.grow(lanes.running[share.lane], whole=share.lane == 0)
    assert kinds == [True, False] * 3


def test_the_lowest_free_slot_is_taken_first():
    lanes = lanes_with(1, 1, 1, slots=4)
    lanes.end(lanes.running[1])
    lanes.end(lanes.running[0])
    lanes.waiting.append(lane(7, 1))
    assert [one.slot for one in lanes.admit()] == [0]


def test_a_frame_that_does_not_come_back_in_order_is_an_error():
    lanes = lanes_with(300)
    send_all(lanes, Policy(max_frames=2))
    with pytest.raises(ProtocolError, match="step 1 came back, expected was 0"):
        lanes.arrive(1)


def test_a_frame_larger_than_the_byte_limit_still_goes_alone():
    lanes = lanes_with(300)
    assert len(send_all(lanes, Policy(max_frames=4, max_bytes=10, token_bytes=4))) == 1


@pytest.mark.parametrize("budget", [1, 2, 8])
def test_a_long_prompt_is_taken_in_while_others_decode_for_ever(budget):
    lanes = decoding(6)
    policy = Policy(max_step_tokens=budget, max_frames=2)
    lanes.waiting.append(lane(99, 50))
    lanes.admit()
    for _ in range(60):
        send_all(lanes, policy)
        come_back(lanes)
    assert lanes.running[99].sent >= 50
    for _ in range(20):
        send_all(lanes, policy)
        come_back(lanes)
    assert min(one.served for one in lanes.running.values()) > lanes.steps - 12


def test_a_long_prompt_is_not_starved_by_short_ones_nor_they_by_it():
    lanes = lanes_with(1000, slots=3)
    policy = Policy(max_step_tokens=10, max_frames=2)
    waited = {}
    for number in range(1, 400):
        lanes.waiting.append(lane(number, 10))
        for admitted in lanes.admit():
            waited[admitted.id] = lanes.steps
        send_all(lanes, policy)
        flight = lanes.arrive(lanes.flights[0].step)
        for share in flight.plan.shares:
            if share.wanted:
                assert share.lane == 0 or flight.step - waited[share.lane] < 8
                lanes.end(lanes.running[share.lane])
        if 0 not in lanes.running:
            break
    assert 0 not in lanes.running
    assert lanes.steps < 300


# --- a whole life, at random -------------------------------------------------------------------------------------


class SimulatedRing:
    """A stage's KV arena as FIFO frames leave it: which lane wrote each position of each slot."""

    def __init__(self, lanes: Lanes, policy: Policy) -> None:
        self.lanes = lanes
        self.policy = policy
        self.arena = {slot: {} for slot in range(lanes.slots)}
        self.expected = {}

    def check_departure(self, plan) -> None:
        lanes, policy = self.lanes, self.policy
        assert 0 < sum(share.count for share in plan.shares) <= policy.max_step_tokens
        assert len(lanes.flights) < policy.max_frames
        assert not lanes.flights or lanes.bytes + plan.bytes <= policy.max_bytes
        assert len({share.slot for share in plan.shares}) == len(plan.shares)
        for share in plan.shares:
            one = lanes.running[share.lane]
            assert share.slot == one.slot
            assert share.start == one.sent
            assert share.wanted == (share.start + share.count == one.length)
            assert plan.whole_logits == (share.wanted and one.whole)

    def compute(self, plan) -> None:
        for share in plan.shares:
            kept = self.arena[share.slot]
            if share.lane in self.lanes.running:
                assert all(kept.get(position) == share.lane for position in range(share.start))
            kept.update(dict.fromkeys(range(share.start, share.start + share.count), share.lane))


@given(data=st.data())
def test_every_lane_is_served_and_no_rule_is_broken(data):
    chance = random.Random(data.draw(st.integers(0, 1 << 32)))
    policy = Policy(
        max_step_tokens=data.draw(st.sampled_from([1, 2, 5, 16])),
        max_frames=data.draw(st.integers(1, 6)),
        max_bytes=data.draw(st.sampled_from([1, 60, 1 << 30])),
        decode_groups=data.draw(st.integers(1, 4)),
        min_group_rows=data.draw(st.integers(1, 3)),
    )
    lanes = Lanes(data.draw(st.integers(1, 5)))
    ring = SimulatedRing(lanes, policy)
    targets = {number: chance.randint(1, 8) for number in range(data.draw(st.integers(1, 12)))}
    coming = [lane(number, chance.randint(1, 40)) for number in targets]
    ended = []

    def end(one: Lane) -> None:
        lanes.end(one)
        ended.append(one.id)

    for _ in range(5000):
        if coming and chance.random() < 0.3:
            lanes.waiting.append(coming.pop(0))
        lanes.admit()
        assert len({one.slot for one in lanes.running.values()}) == len(lanes.running)
        assert sorted([*lanes.free, *(one.slot for one in lanes.running.values())]) == list(range(lanes.slots))
        while (plan := schedule(lanes, policy)) is not None:
            ring.check_departure(plan)
            lanes.depart(plan)
        if chance.random() < 0.02 and (alive := [*lanes.running.values(), *lanes.waiting]):
            end(chance.choice(alive))
        if not lanes.flights:
            if not (coming or lanes.waiting or lanes.running):
                break
            assert not lanes.running or lanes.free, "nothing is in flight although a lane runs"
            continue
        flight = lanes.arrive(lanes.flights[0].step)
        ring.compute(flight.plan)
        for share in flight.plan.shares:
            one = lanes.running.get(share.lane)
            if not share.wanted or one is None:
                continue
            if not flight.plan.whole_logits and chance.random() < 0.1:
                one.ask_again()
                continue
            lanes.grow(one, whole=chance.random() < 0.05)
            if one.length - one.prompt >= targets[one.id]:
                end(one)
    assert sorted(ended) == sorted(targets)
    assert lanes.bytes == 0
