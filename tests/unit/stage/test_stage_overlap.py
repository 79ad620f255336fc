"""A stage that receives and sends beside computing: the same answers, order, ends and faults as one that does not."""

from __future__ import annotations

import struct
import threading

import pytest

from hyperlane.core import Row
from hyperlane.errors import EngineFault, LinkBroken, LinkClosed, LinkError
from hyperlane.stage.overlap import NEVER, Aside
from hyperlane.stage.stage import Stage, StageState
from hyperlane.stage.terms import hello_to
from hyperlane.testing.fake_engine import FakeEngine, fake_generate
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs
from hyperlane.wire.candidates import split
from hyperlane.wire.frame import Copy, Fault, Frame, Kind, Role
from hyperlane.wire.memory import MemoryLink, Pipe
from hyperlane.wire.reader import place_afresh

FACTS = toy_facts()
EPOCH = 1
SECONDS = 10.0
LARGE = 4 * 4 * FACTS.hidden
"""Bytes from which a frame is large here: four tokens."""


class Gate:
    """A step's cost that lasts until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, _: float) -> None:
        self.reached.release()
        assert self.opened.acquire(timeout=SECONDS)


class Stages:
    """The stages of one plan, linked; `pipes` are what they send through, `before` and `after` the neighbours."""

    def __init__(self, count: int = 2, capacity: int | None = None, from_bytes: int = LARGE) -> None:
        specs = toy_specs(toy_plan(FACTS, stages=count))
        self.engines = [FakeEngine(spec) for spec in specs]
        self.stages = [
            Stage(spec, engine, f"worker-{spec.index}", from_bytes)
            for spec, engine in zip(specs, self.engines, strict=True)
        ]
        terms = [hello_to(spec, Role.UPSTREAM, self.engines[0].element).terms() for spec in specs]
        terms.append(hello_to(specs[-1], Role.DOWNSTREAM, self.engines[-1].element).terms())
        self.pipes = [Pipe(capacity if 0 < number < count else None) for number in range(count + 1)]
        links = [
            (MemoryLink(pipe, Pipe(None), said), MemoryLink(Pipe(None), pipe, said))
            for pipe, said in zip(self.pipes, terms, strict=True)
        ]
        self.before, self.after, self._said = links[0][0], links[-1][1], terms[-1]
        for number, stage in enumerate(self.stages):
            stage.attach(Role.UPSTREAM, links[number][1])
            stage.attach(Role.DOWNSTREAM, links[number + 1][0])

    def send(self, step: int, tokens: list[int], start: int = 0, slot: int = 0) -> None:
        rows = (Row(slot, start, len(tokens), (len(tokens) - 1,)),)
        self.before.send(Frame(Kind.TOKENS, EPOCH, step, rows, (struct.pack(f"<{len(tokens)}i", *tokens),)))

    def receive(self):
        return self.after.recv(place_afresh(self._said))

    def best(self) -> tuple[int, int]:
        frame = self.receive()
        assert isinstance(frame, Frame), frame
        ((candidates,),) = split(frame.rows, frame.payload[0], FACTS.vocab)
        return frame.step, int(candidates.ids[0])

    def end(self) -> None:
        for stage in self.stages:
            stage.close()
        assert not [one.name for one in threading.enumerate() if one.name.endswith(("-receives", "-sends"))]


@pytest.fixture
def made():
    stages: list[Stages] = []

    def make(*given, **named):
        stages.append(Stages(*given, **named))
        return stages[-1]

    yield make
    for one in stages:
        one.end()


@pytest.mark.parametrize("from_bytes", [1, LARGE, NEVER])
@pytest.mark.parametrize("capacity", [None, 64])
def test_frames_of_all_sizes_are_answered_in_order(made, from_bytes, capacity):
    pipeline = made(3, capacity, from_bytes)
    prompt = list(range(40, 70))
    sizes, start = [8, 5, 1, 2, 7, 1, 6], 0
    for step, size in enumerate(sizes):
        pipeline.send(step, prompt[start : start + size], start)
        start += size
    ends = [sum(sizes[: step + 1]) for step in range(len(sizes))]
    assert [pipeline.best() for _ in sizes] == [
        (step, fake_generate(prompt[:end], 1, FACTS)[0]) for step, end in enumerate(ends)
    ]


def test_the_next_frame_comes_in_while_one_is_computed(made):
    pipeline = made(2)
    gate = pipeline.engines[1]._wait = Gate()
    pipeline.engines[1]._cost = type("Any", (), {"of": lambda *_: 1.0})()
    pipeline.send(1, [5, 6, 7, 8])
    assert gate.reached.acquire(timeout=SECONDS)
    pipeline.send(2, [9, 10, 11, 12], 4)
    coming = pipeline.stages[1]._loop._overlap.coming
    assert coming.result(SECONDS).step == 2  # it has come in whole, and the first one is not computed yet
    gate.opened.release(2)
    assert [pipeline.best()[0] for _ in range(2)] == [1, 2]


def test_a_frame_is_computed_while_the_last_one_is_being_sent(made):
    pipeline = made(2, capacity=16)  # far less than a frame: who sends one waits for its reader
    gate = pipeline.engines[1]._wait = Gate()
    pipeline.engines[1]._cost = type("Any", (), {"of": lambda *_: 1.0})()
    for step in range(4):
        pipeline.send(step, [1, 2, 3, 4], 4 * step)
    assert gate.reached.acquire(timeout=SECONDS)
    wait_until(lambda: pipeline.engines[0]._steps == 4)  # one computed, one come in, one being sent, one behind it
    gate.opened.release(4)
    assert [pipeline.best()[0] for _ in range(4)] == [0, 1, 2, 3]


def test_a_copy_keeps_its_place_among_large_frames(made):
    pipeline = made(2)
    pipeline.send(1, [5, 6, 7, 8])
    pipeline.before.send(Copy(EPOCH, 2, source=0, destination=2, count=4))
    pipeline.send(3, [9, 10, 11, 12], 4, slot=2)
    assert pipeline.best()[0] == 1
    assert pipeline.receive() == Copy(EPOCH, 2, 0, 2, 4)
    assert pipeline.best() == (3, fake_generate([5, 6, 7, 8, 9, 10, 11, 12], 1, FACTS)[0])


def test_what_was_computed_goes_out_before_the_links_end_in_order(made):
    pipeline = made(2, capacity=16)
    for step in range(3):
        pipeline.send(step, [1, 2, 3, 4], 4 * step)
    pipeline.before.close()
    assert [pipeline.best()[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LinkClosed):
        pipeline.receive()


def test_a_fault_comes_after_what_was_sent_beside_it(made):
    pipeline = made(2, capacity=16)
    step = pipeline.engines[0].step

    def fail(rows, bank=None):
        if rows[0].start == 4:
            raise EngineFault("the device is gone")
        return step(rows, bank)

    pipeline.engines[0].step = fail
    pipeline.send(1, [1, 2, 3, 4])
    pipeline.send(2, [1, 2, 3, 4], 4)
    assert pipeline.best()[0] == 1
    fault = pipeline.receive()
    assert isinstance(fault, Fault)
    assert (fault.step, fault.stage) == (2, 0)


def test_an_engine_that_fails_gives_up_what_is_being_received(made):
    pipeline = made(2)

    def fail(rows, bank=None):
        raise EngineFault("the device is gone")

    pipeline.engines[1].step = fail
    pipeline.send(1, [1, 2, 3, 4])  # and nothing comes after it
    assert isinstance(pipeline.receive(), Fault)
    with pytest.raises(LinkError):
        pipeline.receive()


def test_a_receiver_that_vanishes_ends_a_stage_that_waits_for_a_frame(made):
    pipeline = made(2, capacity=16)
    gate = pipeline.engines[1]._wait = Gate()
    pipeline.engines[1]._cost = type("Any", (), {"of": lambda *_: 1.0})()
    for step in range(3):
        pipeline.send(step, [1, 2, 3, 4], 4 * step)
    assert gate.reached.acquire(timeout=SECONDS)
    wait_until(lambda: pipeline.engines[0]._steps == 3)
    pipeline.pipes[1].end()
    wait_until(lambda: pipeline.stages[0].health().state is StageState.FAULTED)
    gate.opened.release(3)


def test_closing_ends_a_stage_whose_helpers_are_blocked(made):
    pipeline = made(2, capacity=16)
    gate = pipeline.engines[1]._wait = Gate()
    pipeline.engines[1]._cost = type("Any", (), {"of": lambda *_: 1.0})()
    for step in range(4):
        pipeline.send(step, [1, 2, 3, 4], 4 * step)
    assert gate.reached.acquire(timeout=SECONDS)
    pipeline.stages[0].close()
    assert pipeline.stages[0].health().state is StageState.CLOSED
    gate.opened.release(4)


def test_whatever_a_helper_raises_is_its_callers():
    aside = Aside("a test")

    def fail() -> None:
        raise MemoryError("no page left")

    assert aside.begin(lambda: 1).result(SECONDS) == 1
    with pytest.raises(MemoryError):
        aside.begin(fail).result(SECONDS)
    broken = aside.begin(lambda: (_ for _ in ()).throw(LinkBroken("gone")))
    aside.end()
    assert isinstance(broken.exception(0), LinkBroken)


def wait_until(done) -> None:
    pause = threading.Event()
    for _ in range(int(SECONDS / 0.005)):
        if done():
            return
        pause.wait(0.005)
    raise AssertionError("it did not come about")
