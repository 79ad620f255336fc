"""The frame that is planned ahead is the one that the scheduler would send, or is not used."""

import pytest

from hyperlane.core import GenerationRequest, SamplingParams
from hyperlane.head.ahead import look_ahead
from hyperlane.head.frames import rows_of, step_frame
from hyperlane.head.lane import Lane
from hyperlane.head.scheduler import Lanes, Policy, schedule
from hyperlane.head.sequence import Sequence
from hyperlane.wire.codec import encode

POLICY = Policy(max_frames=1)
PENALISED = SamplingParams(temperature=0.0, presence_penalty=-1.0)


class Head:
    """Sequences whose frame is in flight, as a loop has them; `slots` in the order in which they were admitted."""

    def __init__(self, *slots: int, sampling: SamplingParams | None = None) -> None:
        self.lanes = Lanes(8)
        self.sequences = {}
        for number, slot in enumerate(slots):
            lane = Lane(number, 3, 3, slot=slot)
            request = GenerationRequest(f"r{number}", (1, 2, 3), sampling or SamplingParams(temperature=0.0), 20)
            facts = {"seed": 7, "limit": 23, "vocab": 100, "submitted_s": 0.0}
            self.sequences[number] = Sequence(
                request, lane, token_bytes=lambda _: b"x", **facts
            )  # fmt: skip
            self.lanes.running[number] = lane
            self.lanes.free.remove(slot)
        self.depart()
        self.come_back()
        self.depart()

    def depart(self) -> None:
        plan = schedule(self.lanes, POLICY)
        assert plan is not None
        self.lanes.depart(plan)

    def come_back(self, token: int = 50) -> None:
        flight = self.lanes.arrive(self.lanes.flights[0].step)
        for share in flight.plan.shares:
            self.sequences[share.lane].append(token, 1.0)
            self.lanes.grow(self.lanes.running[share.lane], whole=False)

    def ahead(self):
        return look_ahead(self.lanes, POLICY, self.sequences)


@pytest.mark.parametrize("slots", [(0,), (5,), (0, 1), (3, 0, 2)])
def test_what_is_planned_ahead_is_what_the_scheduler_sends(slots):
    head = Head(*slots)
    ahead = head.ahead()
    assert ahead is not None
    assert not ahead.holds(head.lanes), "its frame has not come back"
    head.come_back()
    assert ahead.holds(head.lanes)
    plan = schedule(head.lanes, POLICY)
    assert ahead.plan == plan
    assert ahead.rows.rows == rows_of(plan, head.sequences)
    flight = head.lanes.depart(plan)
    assert encode(step_frame(flight, head.sequences, 1, ahead.rows)) == encode(step_frame(flight, head.sequences, 1))


def ends_and_another_takes_its_slot(head):
    gone = head.lanes.running[0]
    head.lanes.end(gone)
    head.lanes.running[9] = Lane(9, 3, 4, 3, slot=gone.slot)


def waits(head):
    head.lanes.waiting.append(Lane(9, 3, 3))


def takes_whole_logits(head):
    head.lanes.running[0].ask_again()


@pytest.mark.parametrize("happens", [ends_and_another_takes_its_slot, waits, takes_whole_logits])
def test_what_was_planned_ahead_is_dropped_when_something_else_happens(happens):
    head = Head(0, 1)
    ahead = head.ahead()
    head.come_back()
    happens(head)
    assert not ahead.holds(head.lanes)


def test_what_was_planned_ahead_is_dropped_when_a_token_changes_what_is_asked():
    head = Head(0, sampling=PENALISED)
    ahead = head.ahead()
    head.come_back(token=77)
    assert not ahead.holds(head.lanes), "the row must name the token that is penalised now"


def test_nothing_is_planned_while_a_prompt_is_taken_in():
    head = Head(0, 1)
    head.lanes.running[1] = Lane(1, 30, 30, slot=1)
    assert head.ahead() is None
