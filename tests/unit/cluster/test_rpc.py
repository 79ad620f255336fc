"""The control port over real gRPC on loopback: errors by class, versions, cancellation, retries, the health service."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hyperlane.cluster import messages, rpc
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.pb.control_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server
from hyperlane.cluster.worker_client import WorkerClient
from hyperlane.cluster.worker_server import SERVICE, WorkerFace, WorkerServer
from hyperlane.core import Address, ElementType, Epoch, HeadId
from hyperlane.errors import (
    ClusterError,
    ConfigError,
    DoesNotFit,
    LoadFailed,
    MalformedModel,
    VersionMismatch,
    WorkerBusy,
    WorkerUnreachable,
)
from hyperlane.stage.host import StageHost
from hyperlane.stage.orders import LoadOrder, LoadProgress, StageKey, WeightSources
from hyperlane.testing.fake_engine import FakeEngine
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs

HEAD, OTHER = HeadId(b"h" * 16), HeadId(b"o" * 16)
SPEC = toy_specs(toy_plan(toy_facts(), stages=2))[0]
FACTS = toy_plan(toy_facts()).stages[0].worker
LOOPBACK = Address("127.0.0.1", 0)
MEMORY = 1 << 30


def order(head: HeadId = HEAD, needed: int = 100) -> LoadOrder:
    spec = replace(SPEC, epoch=Epoch(head, 1))
    return LoadOrder(spec, WeightSources(), weight_bytes=needed, kv_bytes=0, workspace_bytes=0)


def toy_engine(order, progress):
    progress(LoadProgress("converting", 1, 2))
    return FakeEngine(order.spec)


def nobody(address, hello):
    raise WorkerUnreachable(f"nothing answers at {address}")


@asynccontextmanager
async def worker(load=toy_engine):
    host = StageHost("worker-a", load, nobody, free_memory=lambda: MEMORY, memory_limit=MEMORY)
    server = WorkerServer(host, WorkerFace(lambda: FACTS, lambda fingerprint, path: path == "/there"))
    address = await server.start(LOOPBACK)
    client = WorkerClient(address)
    try:
        yield client, host
    finally:
        await client.close()
        await server.stop()
        host.close()


@asynccontextmanager
async def raw_worker(servicer):
    """Something that answers as the given methods do, and knows no other call."""
    server = grpc.aio.server()
    missing = ("Describe", "Load", "Connect", "Unload", "Drain", "Health")
    for name in missing:
        if not hasattr(servicer, name):
            setattr(servicer, name, lambda request, context: None)
    add_WorkerServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = WorkerClient(Address("127.0.0.1", port))
    try:
        yield client
    finally:
        await client.close()
        await server.stop(None)


def reserved_port() -> Address:
    """A port that was free a moment ago and that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return Address("127.0.0.1", sock.getsockname()[1])


async def test_a_worker_says_what_it_is_and_whether_it_holds_the_model():
    async with worker() as (client, _):
        described = await client.describe("f" * 64, "/there")
        assert described.holds_model
        assert described.facts.control == client.address
        assert described.facts.name == FACTS.name
        assert not (await client.describe("f" * 64, "/elsewhere")).holds_model


async def test_a_load_reports_progress_and_ends_with_what_it_took():
    async with worker() as (client, _):
        seen: list[LoadProgress] = []
        loaded = await client.load(order(), seen.append, timeout_s=10)
        assert loaded.element is ElementType.F32
        assert loaded.private_bytes > 0
        assert LoadProgress("converting", 1, 2) in seen


@pytest.mark.parametrize("error", [MalformedModel("bad tensor"), DoesNotFit("3 bytes are missing"), LoadFailed("no")])
async def test_a_refusal_arrives_as_the_error_that_it_was(error):
    def fail(order, progress):
        raise error

    async with worker(fail) as (client, host):
        with pytest.raises(type(error), match=str(error)) as raised:
            await client.load(order(), lambda progress: None, timeout_s=10)
        assert raised.value.__cause__ is not None
        assert host.renew(HEAD).stages == ()


async def test_a_second_head_is_told_that_the_worker_is_busy():
    async with worker() as (client, _):
        await client.load(order(), lambda progress: None, timeout_s=10)
        with pytest.raises(WorkerBusy, match="is held by head"):
            await client.load(order(OTHER), lambda progress: None, timeout_s=10)
        assert await client.unload(HEAD) == 1
        assert await client.unload(HEAD) == 0
        await client.load(order(OTHER), lambda progress: None, timeout_s=10)


async def test_a_head_that_counts_too_little_does_not_get_more_than_there_is():
    def never(order, progress):
        raise AssertionError("it was admitted")

    async with worker(never) as (client, _):
        greedy = replace(SPEC, slots=1 << 20, context=1 << 20, epoch=Epoch(HEAD, 1))
        with pytest.raises(DoesNotFit, match="KV arena"):
            await client.load(LoadOrder(greedy, WeightSources(), 0, 0, 0), lambda progress: None, timeout_s=10)


async def test_a_message_beyond_the_limit_is_refused_and_the_worker_goes_on():
    async with worker() as (client, _):
        with pytest.raises(ClusterError, match="larger than max"):
            await client.describe("f" * 64, "x" * (rpc.MAX_MESSAGE_BYTES + 1))
        assert (await client.describe()).facts.name == FACTS.name


async def test_noise_on_the_control_port_disturbs_nobody():
    async with worker() as (client, _):
        for noise in (
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(range(256)) * 8,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(99),
        ):
            _, writer = await asyncio.open_connection(client.address.host, client.address.port)
            writer.write(noise)
            await writer.drain()
            writer.close()
        assert (await client.describe()).facts.name == FACTS.name


async def test_cancelling_a_load_gives_it_up_and_leaves_nothing():
    reached, go_on = threading.Event(), threading.Event()

    def slow(order, progress):
        reached.set()
        go_on.wait(10)
        progress(LoadProgress("half", 1, 2))
        return FakeEngine(order.spec)

    async with worker(slow) as (client, host):
        loading = asyncio.create_task(client.load(order(), lambda progress: None, timeout_s=10))
        await asyncio.to_thread(reached.wait, 10)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        while not any(host._loading[key].cancelled for key in list(host._loading)):
            await asyncio.sleep(0.01)
        go_on.set()
        while host._loading:
            await asyncio.sleep(0.01)
        assert host.memory_free() == MEMORY
        assert not host.renew(HEAD).holds_lease


async def test_a_load_that_takes_too_long_fails_by_name():
    release = threading.Event()

    def slow(order, progress):
        release.wait(10)
        progress(LoadProgress("late"))
        return FakeEngine(order.spec)

    async with worker(slow) as (client, _):
        await client.describe()
        with pytest.raises(LoadFailed, match=r"worker toy-0 .* was lost while loading stage 0 of epoch 1.*0\.3 s"):
            await client.load(order(), lambda progress: None, timeout_s=0.3)
        release.set()


async def test_health_renews_only_the_holders_lease():
    async with worker() as (client, _):
        await client.load(order(), lambda progress: None, timeout_s=10)
        mine, theirs = await client.health(HEAD), await client.health(OTHER)
        assert mine.holds_lease
        assert [key for key, _ in mine.stages] == [StageKey(Epoch(HEAD, 1), 0)]
        assert (theirs.holds_lease, theirs.stages) == (False, ())


async def test_connecting_to_a_next_stage_that_is_not_there_says_so():
    async with worker() as (client, _):
        await client.load(order(), lambda progress: None, timeout_s=10)
        with pytest.raises(WorkerUnreachable, match=r"127\.0\.0\.1:9"):
            await client.connect(StageKey(Epoch(HEAD, 1), 0), Address("127.0.0.1", 9))
        with pytest.raises(LoadFailed, match="not loaded"):
            await client.connect(StageKey(Epoch(HEAD, 5), 0), Address("127.0.0.1", 9))


async def test_draining_takes_no_further_stage():
    async with worker() as (client, _):
        assert await client.drain() == 0
        with pytest.raises(WorkerBusy, match="draining"):
            await client.load(order(), lambda progress: None, timeout_s=10)


async def test_nobody_at_an_address_is_unreachable_with_what_to_check():
    client = WorkerClient(reserved_port())
    with pytest.raises(WorkerUnreachable, match="check that it") as raised:
        await client.describe(timeout_s=3)
    assert str(client.address) in str(raised.value)
    await client.close()


async def test_a_peer_that_accepts_and_never_answers_is_given_up_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = WorkerClient(Address("127.0.0.1", silent.getsockname()[1]))
        with pytest.raises(WorkerUnreachable, match=r"did not answer within 0\.5 s"):
            await client.describe(timeout_s=0.5)
        await client.close()


async def test_a_worker_of_another_version_is_named_with_both_versions():
    class Newer(WorkerServicer):
        async def Describe(self, request, context):  # noqa: N802 (the proto's)
            return pb.DescribeResponse(version=pb.Version(protocol=99, hyperlane="9.9.9"), name="n", data_port=1)

    async with raw_worker(Newer()) as client:
        with pytest.raises(
            VersionMismatch,
            match=rf"9\.9\.9 .*protocol 99.*protocol {messages.CONTROL_PROTOCOL}.*update Hyperlane on this machine",
        ):
            await client.describe()


async def test_a_head_of_another_version_is_refused_by_the_worker(monkeypatch):
    async with worker() as (client, _):
        monkeypatch.setattr(messages, "own_version", lambda: pb.Version(protocol=7, hyperlane="7.7"))
        with pytest.raises(VersionMismatch, match=r"the head runs Hyperlane 7\.7"):
            await client.load(order(), lambda progress: None, timeout_s=10)


async def test_a_server_that_is_no_worker_is_another_version():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = WorkerClient(Address("127.0.0.1", port))
    with pytest.raises(VersionMismatch, match="no Hyperlane worker"):
        await client.describe()
    await client.close()
    await server.stop(None)


async def test_nonsense_from_a_worker_is_an_error_of_the_cluster():
    class Odd(WorkerServicer):
        async def Describe(self, request, context):  # noqa: N802 (the proto's)
            return pb.DescribeResponse(version=messages.own_version(), name="n", data_port=0, element=77)

    async with raw_worker(Odd()) as client:
        with pytest.raises(ClusterError, match="answered nonsense"):
            await client.describe()


async def test_the_standard_health_service_says_serving():
    async with worker() as (client, _), grpc.aio.insecure_channel(str(client.address)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_port_in_use_is_named():
    async with worker() as (client, host):
        other = WorkerServer(host, WorkerFace(lambda: FACTS, lambda fingerprint, path: False))
        with pytest.raises(ConfigError, match=f"cannot listen on {client.address}"):
            await other.start(client.address)


async def test_calls_that_are_safe_are_repeated_until_the_worker_is_there():
    address, tries = reserved_port(), []

    async def call(timeout_s: float) -> int:
        tries.append(timeout_s)
        if len(tries) < 3:
            raise WorkerUnreachable(str(address))
        return 7

    assert await rpc.retried(call, budget_s=10.0) == 7
    assert len(tries) == 3
    assert tries == sorted(tries, reverse=True)


async def test_retries_end_with_the_budget_and_with_the_last_error():
    async def call(timeout_s: float) -> None:
        raise WorkerUnreachable("gone")

    with pytest.raises(WorkerUnreachable, match="gone"):
        await rpc.retried(call, budget_s=0.01)


def test_pauses_grow_with_jitter_up_to_a_limit():
    pauses = rpc.pauses(8, random.Random(1))
    assert all(
        0.5 * rpc.FIRST_PAUSE_S * 2**i <= pause <= rpc.FIRST_PAUSE_S * 2**i for i, pause in enumerate(pauses[:4])
    )
    assert max(pauses) <= rpc.LONGEST_PAUSE_S
    assert pauses != rpc.pauses(8, random.Random(2))
