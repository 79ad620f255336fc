"""The stage loop over memory links with the toy model: order, timing records, failure, and what survives it."""

from __future__ import annotations

import struct

import pytest

from hyperlane.core import Row
from hyperlane.errors import LinkClosed, LinkError, ProtocolError
from hyperlane.stage.stage import Stage, StageState
from hyperlane.stage.terms import hello_to, limits_of
from hyperlane.testing.fake_engine import FakeEngine, FakeFaults, fake_generate
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs
from hyperlane.wire.candidates import split
from hyperlane.wire.frame import Copy, Fault, Frame, Kind, Role
from hyperlane.wire.limits import Terms
from hyperlane.wire.memory import MemoryLink, Pipe
from hyperlane.wire.reader import place_afresh

FACTS = toy_facts()
EPOCH = 1
SECONDS = 10.0


def link_pair(terms: Terms) -> tuple[MemoryLink, MemoryLink]:
    there, back = Pipe(None), Pipe(None)
    return MemoryLink(there, back, terms), MemoryLink(back, there, terms)


class OneStage:
    """A single stage that is first and last, and both its neighbours."""

    def __init__(self, **faults: int) -> None:
        (self.spec,) = toy_specs(toy_plan(FACTS, stages=1))
        self.engine = FakeEngine(self.spec, faults=FakeFaults(**faults))
        self.stage = Stage(self.spec, self.engine, "worker-a")
        limits = limits_of(self.spec, self.spec.precision_in, self.engine.element)
        self.down_terms = hello_to(self.spec, Role.DOWNSTREAM, self.engine.element).terms()
        self.before, upstream = link_pair(Terms(EPOCH, limits, frozenset({Kind.TOKENS})))
        downstream, self.after = link_pair(self.down_terms)
        self.stage.attach(Role.UPSTREAM, upstream)
        self.stage.attach(Role.DOWNSTREAM, downstream)

    def send(self, step: int, tokens: list[int], start: int = 0, slot: int = 0, want_all: bool = False) -> None:
        want = tuple(range(len(tokens))) if want_all else (len(tokens) - 1,)
        rows = (Row(slot, start, len(tokens), want),)
        self.before.send(Frame(Kind.TOKENS, EPOCH, step, rows, (struct.pack(f"<{len(tokens)}i", *tokens),)))

    def receive(self):
        return self.after.recv(place_afresh(self.down_terms))

    def wait_until_dropped(self) -> None:
        def receive_all() -> None:
            while True:
                self.receive()

        with pytest.raises(LinkError):
            receive_all()


@pytest.fixture
def one():
    stage = OneStage()
    yield stage
    stage.stage.close()


def best(frame: Frame) -> int:
    ((candidates,),) = split(frame.rows, frame.payload[0], FACTS.vocab)
    return int(candidates.ids[0])


def test_frames_are_answered_in_order_with_the_models_tokens(one):
    one.send(1, [5, 6, 7])
    one.send(2, [9], start=3)
    answers = [one.receive(), one.receive()]
    assert [answer.step for answer in answers] == [1, 2]
    assert [answer.kind for answer in answers] == [Kind.CANDIDATES] * 2
    assert best(answers[0]) == fake_generate([5, 6, 7], 1, FACTS)[0]
    assert best(answers[1]) == fake_generate([5, 6, 7, 9], 1, FACTS)[0]


def test_a_frame_in_which_nothing_is_wanted_is_answered_empty(one):
    one.before.send(Frame(Kind.TOKENS, EPOCH, 1, (Row(0, 0, 1),), (struct.pack("<i", 3),)))
    answer = one.receive()
    assert answer.kind is Kind.CANDIDATES
    assert not any(map(len, answer.payload))


def test_each_stage_adds_one_timing_record(one):
    one.send(1, [1])
    (timing,) = one.receive().timings
    assert timing.stage == 0
    assert timing.sent_bytes > 0
    assert timing.previous_send_us == 0
    assert min(timing.waited_us, timing.computed_us, timing.overhead_us) >= 0


def test_a_copy_is_done_between_its_neighbours_and_passed_on(one):
    one.send(1, [5, 6, 7])
    one.before.send(Copy(EPOCH, 2, source=0, destination=2, count=3))
    one.send(3, [9], start=3, slot=2)
    assert one.receive().step == 1
    assert one.receive() == Copy(EPOCH, 2, 0, 2, 3)
    assert best(one.receive()) == fake_generate([5, 6, 7, 9], 1, FACTS)[0]


def test_an_engine_fault_is_told_onward_with_step_stage_and_worker():
    one = OneStage(raises_at=1)
    one.send(1, [1])
    one.send(2, [2], start=1)
    assert one.receive().step == 1
    fault = one.receive()
    assert isinstance(fault, Fault)
    assert (fault.step, fault.stage) == (2, 0)
    assert "worker-a" in fault.cause
    assert "programmed fault" in fault.cause
    one.wait_until_dropped()
    one.stage.close()


def test_after_a_fault_both_links_are_gone_and_the_kv_entries_are_not():
    one = OneStage(raises_at=1)
    one.send(1, [5, 6, 7])
    one.send(2, [1], start=3)
    one.wait_until_dropped()
    with pytest.raises(LinkError):
        one.before.recv(place_afresh(one.down_terms))
    assert one.stage.health().state is StageState.FAULTED
    assert "programmed fault" in one.stage.health().fault
    rows = (Row(0, 3, 1, (0,)),)
    one.engine.input_buffer(rows)[:] = struct.pack("<i", 9)
    ((candidates,),) = split(rows, one.engine.step(rows)[0], FACTS.vocab)
    assert int(candidates.ids[0]) == fake_generate([5, 6, 7, 9], 1, FACTS)[0]
    one.stage.close()


def test_a_fault_that_comes_in_is_passed_on_as_it_is(one):
    one.before.send(Fault(EPOCH, 4, 7, "the cable"))
    assert one.receive() == Fault(EPOCH, 4, 7, "the cable")
    one.wait_until_dropped()


def test_a_neighbour_that_vanishes_is_told_onward(one):
    one.before.abort()
    fault = one.receive()
    assert isinstance(fault, Fault)
    assert "stage 0 on worker-a" in fault.cause


def test_a_neighbour_that_leaves_in_order_ends_the_links_without_a_fault(one):
    one.before.close()
    with pytest.raises(LinkClosed):
        one.receive()
    one.stage.close()
    assert not one.stage.health().fault


def test_a_row_outside_the_arena_is_a_fault_and_not_a_crash(one):
    rows = (Row(0, FACTS.context - 1, 2, (1,)),)
    one.before.send(Frame(Kind.TOKENS, EPOCH, 1, rows, (struct.pack("<2i", 1, 2),)))
    assert isinstance(one.receive(), Fault)


def test_closing_wakes_a_blocked_loop(one):
    one.stage.close()
    assert one.stage.health().state is StageState.CLOSED
    with pytest.raises(LinkError):
        one.receive()
    one.stage.close()


def test_a_second_link_for_the_same_end_is_refused(one):
    other, _ = link_pair(one.down_terms)
    with pytest.raises(ProtocolError, match="already has its downstream link"):
        one.stage.attach(Role.DOWNSTREAM, other)


def test_a_reserved_end_cannot_be_reserved_twice():
    (spec,) = toy_specs(toy_plan(FACTS, stages=1))
    stage = Stage(spec, FakeEngine(spec), "w")
    stage.reserve(Role.UPSTREAM)
    with pytest.raises(ProtocolError):
        stage.reserve(Role.UPSTREAM)
    stage.give_back(Role.UPSTREAM)
    stage.reserve(Role.UPSTREAM)
    stage.close()
    with pytest.raises(ProtocolError, match="unloaded"):
        stage.reserve(Role.DOWNSTREAM)


def test_health_counts_steps(one):
    one.send(1, [1])
    one.receive()
    one.send(2, [1], start=1)
    one.receive()
    one.before.close()
    with pytest.raises(LinkClosed):
        one.receive()
    assert one.stage.health().state is StageState.WAITING


def test_an_engine_that_fails_in_its_own_way_is_a_fault_too():
    one = OneStage()

    def burn(rows):
        raise MemoryError("no page left")

    one.engine.step = burn
    one.send(1, [1])
    fault = one.receive()
    assert isinstance(fault, Fault)
    assert "no page left" in fault.cause
    one.wait_until_dropped()
    one.stage.close()
