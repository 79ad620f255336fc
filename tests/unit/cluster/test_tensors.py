"""Tensors over gRPC on loopback: whole, verified, resumed, in parallel, and bounded in what is held."""

from __future__ import annotations

import asyncio
import hashlib
import threading

import grpc
import numpy as np
import pytest

from hyperlane.cluster import remote_source
from hyperlane.cluster.background import BackgroundLoop
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.remote_source import RemoteSource
from hyperlane.cluster.tensor_server import CHUNK_BYTES, TensorService, start_server
from hyperlane.core import Address
from hyperlane.errors import TransferError
from hyperlane.models.weights import TensorInfo

TOKEN, FINGERPRINT = "secret", "f" * 64
SIZES = {"empty-ish": 1, "small": 1000, "exact": CHUNK_BYTES, "large": 3 * CHUNK_BYTES + 17}


class Memory:
    """A `TensorSource` of random bytes."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.tensors = {name: rng.integers(0, 256, size, np.uint8) for name, size in SIZES.items()}
        self.reads: list[str] = []

    def names(self):
        return tuple(self.tensors)

    def info(self, name):
        return TensorInfo(name, (SIZES[name],), "F32", SIZES[name]) if name in SIZES else None

    def read(self, name):
        self.reads.append(name)
        return self.tensors[name]


class Flaky(TensorService):
    """Ends every stream after some chunks, `failures` times; notes where each began."""

    def __init__(self, source, failures: int = 0, *, spoil: str = "") -> None:
        super().__init__(source, FINGERPRINT, TOKEN)
        self.failures = failures
        self.spoil = spoil
        self.begins: list[int] = []

    async def FetchTensor(self, request, context):  # noqa: N802 (the proto's)
        self.begins.append(request.offset)
        async for message in super().FetchTensor(request, context):
            if self.spoil == "hash" and message.sha256:
                yield pb.FetchTensorResponse(offset=message.offset, total=message.total, sha256=bytes(32))
            elif self.spoil == "order":
                yield pb.FetchTensorResponse(offset=message.offset + 1, total=message.total, data=message.data)
            elif self.spoil == "end" and message.sha256:
                return
            else:
                yield message
            if self.failures and message.offset + len(message.data) >= CHUNK_BYTES:
                self.failures -= 1

                await context.abort(grpc.StatusCode.UNAVAILABLE, "the cable")


@pytest.fixture
def serve():
    """Starts a service in a loop of its own thread; returns its address."""
    loop, servers = BackgroundLoop("test-tensors"), []

    def start(service: TensorService) -> Address:
        server, address = loop.run(start_server(service, Address("127.0.0.1", 0)))
        servers.append(server)
        return address

    yield start
    for server in servers:
        loop.run(server.stop(None))
    loop.close()


def remote(address: Address, token: str = TOKEN, fingerprint: str = FINGERPRINT) -> RemoteSource:
    return RemoteSource(address, token, fingerprint)


def test_every_tensor_arrives_as_it_is(serve):
    memory = Memory()
    with remote(serve(TensorService(memory, FINGERPRINT, TOKEN))) as source:
        assert source.names() == memory.names()
        for name in memory.names():
            assert source.info(name) == memory.info(name)
            assert np.array_equal(source.read(name), memory.tensors[name])


def test_tensors_fetched_ahead_arrive_in_whatever_order_they_are_read(serve):
    memory = Memory()
    with remote(serve(TensorService(memory, FINGERPRINT, TOKEN))) as source:
        source.expect(memory.names())
        for name in reversed(memory.names()):
            assert np.array_equal(source.read(name), memory.tensors[name])


def test_no_more_is_held_ahead_than_allowed(serve, monkeypatch):
    monkeypatch.setattr(remote_source, "AHEAD_BYTES", CHUNK_BYTES + 500)
    memory = Memory()
    with remote(serve(TensorService(memory, FINGERPRINT, TOKEN))) as source:
        source.expect(memory.names())
        assert source._held == 0
        source.read("empty-ish")
        assert set(source._ahead) == {"small"}
        for name in memory.names():
            assert np.array_equal(source.read(name), memory.tensors[name])
            assert source._held <= remote_source.AHEAD_BYTES
        assert source._held == 0
        assert not source._ahead


def test_what_nobody_reads_is_let_go_of(serve, monkeypatch):
    monkeypatch.setattr(remote_source, "PASSED_BY", 1)
    memory = Memory()
    with remote(serve(TensorService(memory, FINGERPRINT, TOKEN))) as source:
        source.expect(memory.names())
        source.read("empty-ish")
        assert set(source._ahead) == {"small", "exact", "large"}
        source.read("large")
        assert set(source._ahead) == {"exact"}


def test_a_transfer_that_breaks_goes_on_where_it_broke(serve):
    memory, service = Memory(), None
    service = Flaky(memory, failures=2)
    with remote(serve(service)) as source:
        assert np.array_equal(source.read("large"), memory.tensors["large"])
    assert service.begins == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]


@pytest.mark.parametrize(
    ("spoil", "words"), [("hash", "hash differs"), ("order", "out of order"), ("end", "last byte")]
)
def test_bytes_that_are_not_what_was_sent_are_refused(serve, spoil, words):
    with remote(serve(Flaky(Memory(), spoil=spoil))) as source, pytest.raises(TransferError, match=words):
        source.read("large")


def test_a_wrong_token_is_refused(serve):
    with pytest.raises(TransferError, match="another head"):
        remote(serve(TensorService(Memory(), FINGERPRINT, TOKEN)), token="guess")


def test_another_model_is_refused(serve):
    with pytest.raises(TransferError, match="serves another model"):
        remote(serve(TensorService(Memory(), FINGERPRINT, TOKEN)), fingerprint="0" * 64)


def test_a_tensor_that_is_not_there_is_named(serve):
    with remote(serve(TensorService(Memory(), FINGERPRINT, TOKEN))) as source:
        assert source.info("nope") is None
        with pytest.raises(TransferError, match="'nope'"):
            source.read("nope")


def test_nobody_at_the_address_is_a_transfer_error(monkeypatch):
    monkeypatch.setattr(remote_source, "TRIES", 2)
    with pytest.raises(TransferError, match="not answer"):
        remote(Address("127.0.0.1", 9))


def test_a_load_that_is_given_up_ends_the_wait(serve):
    class Stuck(TensorService):
        async def FetchTensor(self, request, context):  # noqa: N802 (the proto's)
            await asyncio.Event().wait()
            yield

    class GivenUp(Exception):
        pass

    def report(fetched: int) -> None:
        raise GivenUp

    with remote(serve(Stuck(Memory(), FINGERPRINT, TOKEN))) as source:
        source.report_to(report)
        with pytest.raises(GivenUp):
            source.read("small")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


def test_the_hash_is_of_the_whole_tensor_wherever_the_stream_began(serve):
    memory = Memory()
    service = Flaky(memory, failures=1)
    with remote(serve(service)) as source:
        data = source.read("exact")
    assert hashlib.sha256(data).digest() == hashlib.sha256(memory.tensors["exact"]).digest()
    assert service.begins == [0, CHUNK_BYTES]
