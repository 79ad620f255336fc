"""Whom an encrypted control port and an encrypted tensor server answer, in one process over real gRPC."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from hyperlane.cluster import rpc
from hyperlane.cluster.layers.dispatch import SourceKind
from hyperlane.cluster.layers.server import TensorService, start_server
from hyperlane.cluster.layers.sources import ServerSource
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.pb.control_pb2_grpc import WorkerStub
from hyperlane.cluster.trust import grpc_tls, preflight
from hyperlane.cluster.trust.folder_trust import FolderTrust
from hyperlane.cluster.trust.worker_trust import WorkerTrust
from hyperlane.cluster.worker_client import WorkerClient
from hyperlane.cluster.worker_server import WorkerFace, WorkerServer
from hyperlane.core import Address, NodeId
from hyperlane.errors import NotTrusted, TransferError, WorkerUnreachable
from hyperlane.stage.host import StageHost
from hyperlane.stage.orders import LinkPeers, LoadOrder, WeightSources
from hyperlane.store.pieces import Piece
from hyperlane.testing.fake_engine import toy_engine
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs
from hyperlane.testing.trust import TrustedPair
from hyperlane.wire.peer import NodeRole

LOOPBACK = Address("127.0.0.1", 0)
SPECS = toy_specs(toy_plan(toy_facts(), stages=2))
FACTS = toy_plan(toy_facts()).stages[0].worker
TIMEOUT_S = 20.0


pytestmark = pytest.mark.usefixtures("heard")


# --- the control port --------------------------------------------------------------------------------------------


@asynccontextmanager
async def worker(pair):
    host = StageHost("worker-a", toy_engine, lambda *_: None, free_memory=lambda: 1 << 30, memory_limit=1 << 30)
    server = WorkerServer(host, WorkerFace(lambda: FACTS, lambda _fingerprint, _path: True), pair.worker)
    address = await server.start(LOOPBACK)
    try:
        yield address, host
    finally:
        await server.stop()
        host.close()


def order(**changed) -> LoadOrder:
    return LoadOrder(SPECS[0], WeightSources(), 100, 0, 0, **changed)


async def test_a_head_loads_over_mutual_tls_and_the_worker_knows_who_it_was(pair):
    async with worker(pair) as (address, host):
        client = WorkerClient(address, pair.head)
        try:
            assert (await client.describe()).facts.name == FACTS.name
            assert client.node == pair.worker.credentials.name.node
            await client.load(order(peers=LinkPeers(pair.head.node)), lambda progress: None, TIMEOUT_S)
            assert [load.peers for load, _ in host._stages.values()] == [LinkPeers(pair.head.node)]
            assert (await client.health(SPECS[0].epoch.head)).holds_lease
        finally:
            await client.close()


async def raw_call(address, credentials, method, request, role=NodeRole.WORKER):
    """A call without any of our client's care."""
    channel = grpc.aio.secure_channel(
        rpc.target(address),
        grpc_tls.channel_credentials(credentials),
        options=grpc_tls.channel_options(credentials, role, None),
    )
    async with channel:
        call = getattr(WorkerStub(channel), method)(request, timeout=TIMEOUT_S)
        if method == "Load":
            return [response async for response in call]
        return await call


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Load", pb.LoadRequest()),
        ("Connect", pb.ConnectRequest()),
        ("Unload", pb.UnloadRequest()),
        ("Drain", pb.DrainRequest()),
        ("Health", pb.HealthRequest()),
        ("Describe", pb.DescribeRequest()),
    ],
)
async def test_a_workers_certificate_may_call_nothing_of_another_worker(pair, caplog, method, request_):
    async with worker(pair) as (address, host):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await raw_call(address, pair.worker.credentials, method, request_)
        assert "may not call" in refused.value.details()
        assert not host._stages
        assert host.drain() == 0
    assert any("refused ipv4:127.0.0.1:" in line and method in line for line in caplog.messages)


async def test_a_stranger_is_told_nothing(pair, stranger):
    async with worker(pair) as (address, _):
        client = WorkerClient(address, stranger.head)
        with pytest.raises(NotTrusted, match="not one of this cluster"):
            await client.describe()
        await client.close()
        plain = WorkerClient(address)
        with pytest.raises(WorkerUnreachable):
            await plain.describe(timeout_s=1)
        await plain.close()


async def test_a_worker_that_was_removed_is_not_spoken_to(tmp_path):
    pair = TrustedPair(tmp_path)
    async with worker(pair) as (address, _):
        client = WorkerClient(address, pair.head)
        await client.describe()
        pair.head.remove_node("worker")
        with pytest.raises(NotTrusted, match="was removed"):
            await client.health(SPECS[0].epoch.head)
        again = WorkerClient(address, pair.head)
        with pytest.raises(NotTrusted, match="was removed"):
            await again.describe()
        await client.close()
        await again.close()


async def test_what_was_taken_back_is_told_to_workers_with_every_heartbeat(tmp_path):
    pair = TrustedPair(tmp_path)
    gone = pair.credentials(NodeRole.WORKER, tmp_path / "gone", b"g" * 16).certificate.peer
    pair.head.remove_node("gone")
    async with worker(pair) as (address, _):
        client = WorkerClient(address, pair.head)
        pair.worker.check(gone)
        await client.health(SPECS[0].epoch.head)
        with pytest.raises(NotTrusted, match="was removed"):
            pair.worker.check(gone)
        await client.close()


async def test_a_revoked_caller_is_refused_on_a_connection_that_it_already_had(tmp_path):
    pair = TrustedPair(tmp_path)
    async with worker(pair) as (address, _):
        client = WorkerClient(address, pair.head)
        await client.describe()
        pair.worker.tell_revoked([pair.head.credentials.certificate.peer.serial])
        with pytest.raises(NotTrusted, match="was removed"):
            await client.describe()
        await client.close()


async def test_a_renewed_certificate_is_shown_to_new_connections(tmp_path):
    pair = TrustedPair(tmp_path)
    async with worker(pair) as (address, _):
        first = await asyncio.to_thread(preflight.identify, address, pair.head, NodeRole.WORKER, TIMEOUT_S)
        pair.worker._credentials = pair.credentials(NodeRole.WORKER, tmp_path / "worker")
        second = await asyncio.to_thread(preflight.identify, address, pair.head, NodeRole.WORKER, TIMEOUT_S)
    assert first.name == second.name
    assert first.serial != second.serial


async def test_a_plain_worker_on_loopback_is_found_out_to_be_one(pair):
    host = StageHost("worker-a", toy_engine, lambda *_: None, free_memory=lambda: 1 << 30, memory_limit=1 << 30)
    server = WorkerServer(host, WorkerFace(lambda: FACTS, lambda _fingerprint, _path: True))
    address = await server.start(LOOPBACK)
    client = WorkerClient(address, pair.head)
    try:
        assert (await client.describe()).facts.name == FACTS.name
        assert client.node is None
        assert client.link_tls() is None
    finally:
        await client.close()
        await server.stop()


async def test_a_worker_of_another_machine_is_never_spoken_to_without_certificates():
    client = WorkerClient(Address("192.0.2.1", 7420))
    with pytest.raises(NotTrusted, match="on another machine"):
        await client.describe()


# --- tensors -----------------------------------------------------------------------------------------------------


MODEL = "f0" * 32


class OneTensor:
    def names(self, fingerprint):
        return ("t",)

    def tensor(self, fingerprint, name):
        return memoryview(b"bytes")


@asynccontextmanager
async def tensors(trust, token=""):
    server, address = await start_server(TensorService(OneTensor(), token), LOOPBACK, trust)
    try:
        yield address
    finally:
        await server.stop(0)


def fetch(address, trust, role, node=None, token=""):
    channel = grpc_tls.open_channel(address, trust, role, node)
    kind = SourceKind.HEAD if role is NodeRole.HEAD else SourceKind.PEER
    source = ServerSource(kind, address, channel, MODEL, token)
    try:
        return bytes(source.fetch(Piece("t", 0, 0, 5)))
    finally:
        source.close()


async def test_the_head_serves_tensors_to_members_with_its_token_alone(pair, stranger):
    async with tensors(pair.head, "token") as address:
        assert await asyncio.to_thread(fetch, address, pair.worker, NodeRole.HEAD, None, "token") == b"bytes"
        with pytest.raises(TransferError, match="another head"):
            await asyncio.to_thread(fetch, address, pair.worker, NodeRole.HEAD, None, "wrong")
        for trust in (stranger.worker, None):
            with pytest.raises(TransferError):
                await asyncio.to_thread(fetch, address, trust, NodeRole.HEAD, None, "token")


async def test_a_worker_serves_tensors_to_another_worker_that_knows_whom_it_asks(pair, stranger, tmp_path):
    other = WorkerTrust(tmp_path, pair.credentials(NodeRole.WORKER, tmp_path, b"o" * 16), ())
    async with tensors(FolderTrust(pair.folder / "worker")) as address:
        mine = pair.worker.credentials.name.node
        assert await asyncio.to_thread(fetch, address, other, NodeRole.WORKER, mine) == b"bytes"
        with pytest.raises(TransferError):
            await asyncio.to_thread(fetch, address, other, NodeRole.WORKER, NodeId(b"n" * 16))
        for trust in (stranger.worker, None):
            with pytest.raises(TransferError):
                await asyncio.to_thread(fetch, address, trust, NodeRole.WORKER, mine)


async def test_a_worker_that_was_removed_is_served_no_tensors_from_the_moment_its_peer_is_told(pair, tmp_path):
    removed = WorkerTrust(tmp_path / "w", pair.credentials(NodeRole.WORKER, tmp_path / "w", b"r" * 16), ())
    shared = WorkerTrust(tmp_path / "s", pair.credentials(NodeRole.WORKER, tmp_path / "s", b"s" * 16), ())
    async with tensors(FolderTrust(tmp_path / "s")) as address:
        assert await asyncio.to_thread(fetch, address, removed, NodeRole.WORKER, NodeId(b"s" * 16)) == b"bytes"
        shared.tell_revoked([removed.credentials.certificate.peer.serial])
        with pytest.raises(TransferError, match="removed from the cluster"):
            await asyncio.to_thread(fetch, address, removed, NodeRole.WORKER, NodeId(b"s" * 16))


async def test_a_tensor_server_of_a_worker_is_not_taken_for_the_heads(pair):
    async with tensors(pair.worker) as address:
        with pytest.raises(TransferError):
            await asyncio.to_thread(fetch, address, pair.worker, NodeRole.HEAD)
