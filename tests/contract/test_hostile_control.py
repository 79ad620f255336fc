"""Hostile calls of the control port over real gRPC: malformed, out of range, too large, in any order.

Whatever comes, the call ends with an error that says what is wrong, nothing large is allocated, no stage is left, and
the next call is answered.
"""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlane.cluster import messages, rpc
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.worker_server import WorkerFace, WorkerServer
from hyperlane.core import Address, Epoch, HeadId
from hyperlane.errors import WorkerUnreachable
from hyperlane.stage.host import StageHost
from hyperlane.stage.orders import LoadOrder, StageKey, WeightSources
from hyperlane.testing.fake_engine import FakeEngine
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs

FUZZ = int(os.environ.get("HYPERLANE_TEST_FUZZ", "1"))
"""`make fuzz` tries so many times as much."""

MEMORY = 1 << 30
ALLOWED_BYTES = 32 << 20
"""What a call may make this process take at its peak; the largest message has 8 MiB."""

HEADS = (HeadId(b"h" * 16), HeadId(b"o" * 16))
FACTS = toy_plan(toy_facts()).stages[0].worker
SPEC = toy_specs(toy_plan(toy_facts(), stages=2))[0]
SAID = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DATA_LOSS,
}
"""UNKNOWN would be an exception that nobody expected; gRPC itself says it of bytes that are no message."""


def nobody(address: object, hello: object) -> None:
    raise WorkerUnreachable(f"nothing answers at {address}")


class Rig:
    """A worker, and a channel that sends it whatever bytes."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        build = lambda order, progress: FakeEngine(order.spec)  # noqa: E731
        self.host = StageHost("worker", build, nobody, free_memory=lambda: MEMORY, memory_limit=MEMORY)
        runner.run(self._start())

    async def _start(self) -> None:
        self._server = WorkerServer(self.host, WorkerFace(lambda: FACTS, lambda *_: False))
        address = await self._server.start(Address("127.0.0.1", 0))
        unlimited = ("grpc.max_send_message_length", -1)
        options = [*(one for one in rpc.CHANNEL_OPTIONS if one[0] != unlimited[0]), unlimited]
        self._channel = grpc.aio.insecure_channel(
            str(address), options=(*options, ("grpc.max_send_message_length", -1))
        )

    def close(self) -> None:
        self._runner.run(self._channel.close())
        self._runner.run(self._server.stop())
        self.host.close()

    def call(self, method: str, data: bytes) -> grpc.StatusCode:
        return self._runner.run(self._call(method, data))

    async def _call(self, method: str, data: bytes) -> grpc.StatusCode:
        path = f"/hyperlane.v1.Worker/{method}"
        try:
            if method in ("Load", "Profile"):
                async for _ in self._channel.unary_stream(path)(data, timeout=30):
                    pass
            else:
                await self._channel.unary_unary(path)(data, timeout=30)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def forget(self) -> None:
        """Nothing of any head is left; all of the memory is free again."""
        for head in {*HEADS, *(key.epoch.head for key in self.host._stages)}:
            self.host.unload(head)
        assert self.host.memory_free() == MEMORY


@pytest.fixture
def rig() -> Iterator[Rig]:
    with asyncio.Runner() as runner:
        made = Rig(runner)
        yield made
        made.close()


def load(head: int = 0, epoch: int = 1) -> pb.LoadRequest:
    spec = replace(SPEC, epoch=Epoch(HEADS[head], epoch))
    return messages.load_to(LoadOrder(spec, WeightSources(), 100, 0, 0), ())


def connect(head: int = 0, epoch: int = 1) -> pb.ConnectRequest:
    to = pb.Address(host="127.0.0.1", port=9)
    return pb.ConnectRequest(epoch=messages.epoch_to(Epoch(HEADS[head], epoch)), index=0, next=to)


def unload(head: int = 0, epoch: int | None = None) -> pb.UnloadRequest:
    return messages.unload_to(HEADS[head], StageKey(Epoch(HEADS[head], epoch), 0) if epoch else None)


VALID = {
    "Describe": pb.DescribeRequest(version=messages.own_version(), fingerprint="f" * 64, path_hint="/there"),
    "Load": load(),
    "Connect": connect(),
    "Unload": unload(),
    "Health": pb.HealthRequest(head=HEADS[0]),
    "Profile": pb.ProfileRequest(version=messages.own_version()),
}


def is_message(method: str, data: bytes) -> bool:
    try:
        type(VALID[method]).FromString(data)
    except DecodeError:
        return False
    return True


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < ALLOWED_BYTES
    finally:
        tracemalloc.stop()


# --- bytes -----------------------------------------------------------------------------------------------------


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    method = draw(st.sampled_from(sorted(VALID)))
    raw = bytearray(VALID[method].SerializeToString())
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=6))
    return method, bytes(raw)


def test_bytes_that_are_no_sound_message_are_refused_and_leave_nothing(rig):
    @settings(max_examples=150 * FUZZ, deadline=None, derandomize=FUZZ == 1, database=None)
    @given(sent=mutated() | st.tuples(st.sampled_from(sorted(VALID)), st.binary(max_size=200)))
    def send(sent):
        with little_memory():
            assert rig.call(*sent) in (SAID if is_message(*sent) else {grpc.StatusCode.UNKNOWN})
        rig.forget()

    send()
    assert rig.call("Load", load().SerializeToString()) is grpc.StatusCode.OK


# --- numbers and texts -----------------------------------------------------------------------------------------

KINDS = FieldDescriptor
EXTREMES = {
    KINDS.CPPTYPE_INT32: (0, 1, -1, 2**31 - 1),
    KINDS.CPPTYPE_UINT32: (0, 1, 2, 255, 2**16, 2**31, 2**32 - 1),
    KINDS.CPPTYPE_INT64: (0, -1, 2**63 - 1),
    KINDS.CPPTYPE_UINT64: (0, 1, 2**32, 2**40, 2**63, 2**64 - 1),
    KINDS.CPPTYPE_DOUBLE: (0.0, -1.0, 1e308, float("inf"), float("nan")),
    KINDS.CPPTYPE_FLOAT: (0.0, -1.0, float("inf"), float("nan")),
    KINDS.CPPTYPE_BOOL: (True, False),
    KINDS.CPPTYPE_ENUM: (0, 1, 2, 3, 99),
    KINDS.CPPTYPE_STRING: ("", "x", "../../etc/passwd", "\x00", "é" * 5000, "f" * 64),
}


def change_one(message: Message, draw: st.DrawFn) -> None:
    """Give one field, at any depth, a value that it should not have; lists get or lose items."""
    field = draw(st.sampled_from(tuple(message.DESCRIPTOR.fields)))
    if field.is_repeated:
        items = getattr(message, field.name)
        if field.cpp_type == KINDS.CPPTYPE_MESSAGE:
            if items and draw(st.booleans()):
                change_one(draw(st.sampled_from(list(items))), draw)
            else:
                items.add()
        elif field.type != KINDS.TYPE_BYTES:
            items.extend([draw(st.sampled_from(EXTREMES[field.cpp_type]))] * draw(st.sampled_from((1, 2, 1000))))
    elif field.cpp_type == KINDS.CPPTYPE_MESSAGE:
        change_one(getattr(message, field.name), draw)
    elif field.type == KINDS.TYPE_BYTES:
        setattr(message, field.name, draw(st.binary(max_size=40)))
    else:
        setattr(message, field.name, draw(st.sampled_from(EXTREMES[field.cpp_type])))


@st.composite
def out_of_range(draw: st.DrawFn) -> tuple[str, bytes]:
    method = draw(st.sampled_from(["Load", "Load", "Load", *sorted(VALID)]))
    message = type(VALID[method]).FromString(VALID[method].SerializeToString())
    for _ in range(draw(st.integers(1, 3))):
        change_one(message, draw)
    return method, message.SerializeToString()


def test_fields_out_of_range_are_refused_and_leave_nothing(rig):
    @settings(max_examples=200 * FUZZ, deadline=None, derandomize=FUZZ == 1, database=None)
    @given(sent=out_of_range())
    def send(sent):
        with little_memory():
            assert rig.call(*sent) in SAID
        rig.forget()

    send()
    assert rig.call("Load", load().SerializeToString()) is grpc.StatusCode.OK


def test_messages_beyond_the_limit_are_refused_before_they_are_read(rig):
    too_long = pb.DescribeRequest(path_hint="x" * (rpc.MAX_MESSAGE_BYTES + 1)).SerializeToString()
    for method in VALID:
        assert rig.call(method, too_long) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rig.call("Health", VALID["Health"].SerializeToString()) is grpc.StatusCode.OK


# --- order -----------------------------------------------------------------------------------------------------

STEPS = st.tuples(st.sampled_from(["Load", "Connect", "Unload", "Health"]), st.integers(0, 1), st.integers(1, 3))


def step(method: str, head: int, epoch: int) -> Message:
    match method:
        case "Load":
            return load(head, epoch)
        case "Connect":
            return connect(head, epoch)
        case "Unload":
            return unload(head, epoch if epoch < 3 else None)
    return pb.HealthRequest(head=HEADS[head])


def test_calls_in_any_order_are_answered_or_refused_and_one_head_holds_the_worker_at_a_time(rig):
    @settings(max_examples=30 * FUZZ, deadline=None, derandomize=FUZZ == 1, database=None)
    @given(steps=st.lists(STEPS, max_size=12))
    def run(steps):
        held: set[tuple[int, int]] = set()
        for method, head, epoch in steps:
            said = rig.call(method, step(method, head, epoch).SerializeToString())
            if method == "Load":
                free = all(other == head for other, _ in held) and (head, epoch) not in held
                assert said is (grpc.StatusCode.OK if free else grpc.StatusCode.FAILED_PRECONDITION)
                held |= {(head, epoch)} if free else set()
            elif method == "Connect":
                assert said is grpc.StatusCode.FAILED_PRECONDITION  # not loaded, or nobody there
            else:
                assert said is grpc.StatusCode.OK
            if method == "Unload":
                held -= {(head, number) for number in (1, 2, 3) if epoch in (number, 3)}
        assert {key.epoch.counter for key in rig.host._stages} == {epoch for _, epoch in held}
        rig.forget()

    run()
