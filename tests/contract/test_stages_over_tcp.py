"""Stage hosts behind real data ports in one process: however many stages, the tokens are those of the whole model."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from hyperlane.core import Address, ElementType, Plan, Precision, Row, StageSpec
from hyperlane.errors import EngineFault, LinkBroken, LinkError, ProtocolError
from hyperlane.stage.host import StageHost
from hyperlane.stage.orders import LoadOrder, StageKey, WeightSources
from hyperlane.stage.stage import StageState
from hyperlane.stage.terms import hello_to
from hyperlane.testing.fake_engine import FakeEngine, FakeFaults, fake_generate
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs
from hyperlane.wire import dial
from hyperlane.wire.candidates import split
from hyperlane.wire.frame import Copy, Frame, Kind, Role
from hyperlane.wire.listener import DataListener
from hyperlane.wire.packing import token_bytes
from hyperlane.wire.ring import TcpRing

FACTS = toy_facts(layers=5)
ANY = Address("127.0.0.1", 0)
NO_FAULTS = FakeFaults()
SECONDS = 10.0


class Workers:
    """One host with one data port for each stage, all loaded."""

    def __init__(self, specs: tuple[StageSpec, ...], parts: ExitStack, faults: FakeFaults) -> None:
        self.specs = specs
        self.hosts = [
            StageHost(f"worker-{spec.index}", self._load(faults), self._dial, free_memory=lambda: 1, memory_limit=1)
            for spec in specs
        ]
        self.ports = [DataListener(ANY, host.admit, host.deliver) for host in self.hosts]
        for host, port in zip(self.hosts, self.ports, strict=True):
            parts.callback(host.close)
            parts.callback(port.close)
        self.stages = [host.load(_order(spec), lambda _: None) for host, spec in zip(self.hosts, specs, strict=True)]

    @staticmethod
    def _load(faults: FakeFaults):
        return lambda order, _: FakeEngine(order.spec, faults=faults if order.spec.index == 1 else NO_FAULTS)

    @staticmethod
    def _dial(address, hello):
        return dial.connect(address, hello, SECONDS)

    def connect(self) -> None:
        for host, spec, following in zip(self.hosts, self.specs, self.ports[1:], strict=False):
            host.connect(StageKey(spec.epoch, spec.index), following.address)

    def ring(self) -> TcpRing:
        element = self.stages[0].engine.element
        to_first = hello_to(self.specs[0], Role.UPSTREAM, element)
        from_last = hello_to(self.specs[-1], Role.DOWNSTREAM, element)
        return TcpRing.connect(self.ports[0].address, to_first, self.ports[-1].address, from_last, SECONDS)


def _order(spec: StageSpec) -> LoadOrder:
    return LoadOrder(spec, WeightSources(), 0, 0, 0)


@contextmanager
def workers(stages: int | Plan, faults: FakeFaults = NO_FAULTS) -> Iterator[Workers]:
    plan = toy_plan(FACTS, stages=stages) if isinstance(stages, int) else stages
    with ExitStack() as parts:
        yield Workers(toy_specs(plan), parts, faults)


@contextmanager
def ring_of(stages: int | Plan, faults: FakeFaults = NO_FAULTS) -> Iterator[tuple[TcpRing, Workers]]:
    with workers(stages, faults) as made:
        made.connect()
        ring = made.ring()
        try:
            yield ring, made
        finally:
            ring.close()


def tokens_frame(step: int, tokens: list[int], start: int, slot: int = 0) -> Frame:
    rows = (Row(slot, start, len(tokens), (len(tokens) - 1,)),)
    return Frame(Kind.TOKENS, 1, step, rows, (struct.pack(f"<{len(tokens)}i", *tokens),))


def next_tokens(ring: TcpRing, count: int) -> list[tuple[int, Frame]]:
    frames: list[Frame] = []
    while len(frames) < count:
        frames += ring.poll(SECONDS)
    answers = [split(frame.rows, frame.payload[0], FACTS.vocab) for frame in frames]
    return [(int(candidates.ids[0]), frame) for ((candidates,),), frame in zip(answers, frames, strict=True)]


def next_token(ring: TcpRing) -> tuple[int, Frame]:
    (answer,) = next_tokens(ring, 1)
    return answer


def generate(ring: TcpRing, prompt: list[int], count: int) -> list[int]:
    answer: list[int] = []
    send, start = prompt, 0
    for step in range(count):
        ring.send(tokens_frame(step, send, start))
        token, _ = next_token(ring)
        answer.append(token)
        start, send = start + len(send), [token]
    return answer


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_any_number_of_stages_gives_the_models_own_tokens(stages):
    with ring_of(stages) as (ring, _):
        assert generate(ring, [3, 1, 4, 1, 5], 16) == fake_generate([3, 1, 4, 1, 5], 16, FACTS)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_packed_links_carry_frames_of_their_own_size(precision):
    facts = toy_facts(layers=5, hidden=128)
    plan = toy_plan(facts, stages=3)
    with ring_of(replace(plan, precisions=(Precision.RAW, precision, precision, Precision.RAW))) as (ring, _):
        assert generate(ring, [3, 1, 4, 1, 5], 16) == fake_generate([3, 1, 4, 1, 5], 16, facts)
        ring.send(tokens_frame(99, [1, 2, 3], 0))
        _, frame = next_token(ring)
        packed = token_bytes(facts.hidden, precision, ElementType.F32)
        assert 3 * packed < frame.timings[0].sent_bytes < 3 * packed + 150


def test_every_stage_of_the_ring_has_added_its_timing_in_order():
    with ring_of(3) as (ring, _):
        ring.send(tokens_frame(1, [1, 2], 0))
        _, frame = next_token(ring)
        assert [timing.stage for timing in frame.timings] == [0, 1, 2]


def test_frames_in_flight_come_back_in_order_with_copies_done_in_between():
    with ring_of(3) as (ring, _):
        ring.send(tokens_frame(1, [5, 6, 7], 0))
        ring.send(Copy(1, 2, source=0, destination=3, count=3))
        ring.send(tokens_frame(3, [9], 3, slot=3))
        first, second = next_tokens(ring, 2)
        assert first[0] == fake_generate([5, 6, 7], 1, FACTS)[0]
        assert second[0] == fake_generate([5, 6, 7, 9], 1, FACTS)[0]


def test_a_fault_in_the_middle_reaches_the_head_with_its_cause():
    with ring_of(3, FakeFaults(raises_at=0)) as (ring, made):
        ring.send(tokens_frame(7, [1], 0))
        with pytest.raises(EngineFault, match=r"step 7.*stage 1 on worker-1.*programmed fault"):
            next_token(ring)
        made.stages[1].close()
        assert "programmed fault" in made.stages[1].health().fault


def test_a_pipeline_is_linked_anew_after_a_fault_with_its_kv_entries_kept():
    with ring_of(3, FakeFaults(raises_at=1)) as (ring, made):
        ring.send(tokens_frame(1, [5, 6, 7], 0))
        next_token(ring)
        ring.send(tokens_frame(2, [9], 3))
        with pytest.raises(EngineFault):
            next_token(ring)
        for stage in made.stages:
            while stage.health().state is StageState.RUNNING:
                stage.drop_links()
        made.connect()
        again = made.ring()
        again.send(tokens_frame(3, [9], 3))
        assert next_token(again)[0] == fake_generate([5, 6, 7, 9], 1, FACTS)[0]
        again.close()


def test_a_stage_that_is_unloaded_in_mid_step_ends_the_ring():
    with ring_of(2) as (ring, made):
        made.hosts[1].unload(made.specs[1].epoch.head)
        ring.send(tokens_frame(1, [1], 0))
        with pytest.raises((LinkError, EngineFault)):
            next_token(ring)


def test_a_head_of_another_epoch_is_refused_at_the_data_port():
    with workers(1) as made:
        old = hello_to(toy_specs(toy_plan(FACTS, stages=1), epoch=0)[0], Role.UPSTREAM, made.stages[0].engine.element)
        with pytest.raises(LinkBroken, match="stage 0 of epoch 0 is not loaded"):
            dial.connect(made.ports[0].address, old, SECONDS)


def test_a_second_ring_for_the_same_stages_is_refused_and_disturbs_nothing():
    with ring_of(2) as (ring, made):
        with pytest.raises(LinkBroken, match="already has its upstream link"):
            made.ring()
        assert generate(ring, [2, 7], 4) == fake_generate([2, 7], 4, FACTS)


def test_connecting_twice_is_refused():
    with workers(2) as made:
        made.connect()
        with pytest.raises((LinkError, ProtocolError)):
            made.connect()
