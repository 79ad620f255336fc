"""The facade for programs, over programmed workers; and the probe against a client that is not what it was."""

from __future__ import annotations

import asyncio
import threading

import pytest

from hyperlane.cluster.discovery import scout as scouting
from hyperlane.cluster.discovery.manager import Discovery
from hyperlane.cluster.discovery.probe import DescribeProbe, Probed, claim_of
from hyperlane.cluster.discovery.scout import Scout, ScoutOptions
from hyperlane.cluster.membership import MemberState, Times
from hyperlane.cluster.worker_client import Described
from hyperlane.core import Address, ClusterId, ElementType, NodeId, WorkerFacts
from hyperlane.errors import ConfigError, NotTrusted, WorkerUnreachable
from hyperlane.wire.peer import NodeRole, Peer, PeerName

A, B = Address("10.0.0.1", 7420), Address("10.0.0.2", 7420)
WITHIN_S = 20.0


def facts(address: Address, node: int) -> WorkerFacts:
    return WorkerFacts(
        name=f"box{node}",
        control=address,
        data=address,
        device="toy",
        provider="toy",
        threads=1,
        memory_total=1,
        memory_free=1,
        element=ElementType.F32,
        hyperlane_version="0.1.0",
        protocol=1,
        runtime_version="0",
        node=(bytes([node]) * 16).hex(),
        machine=f"{node:016x}",
    )


class Workers:
    def __init__(self) -> None:
        self.at: dict[Address, WorkerFacts] = {}
        self.ended = threading.Event()

    async def probe(self, address: Address, _timeout_s: float) -> Probed:
        if address not in self.at:
            raise WorkerUnreachable(f"nothing answers at {address}")
        return Probed(claim_of(self.at[address]), self.at[address])

    def discovery(self) -> Discovery:
        async def open_scouting():
            return Looking(self)

        return Discovery(open_scouting)


class Looking:
    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        times = Times(suspect_after_s=0.3, gone_after_s=0.6)
        self.scout = Scout(ScoutOptions("", 1, addresses=(A, B), times=times), workers.probe, None)

    async def start(self) -> None:
        await self.scout.start()

    async def close(self) -> None:
        await self.scout.close()
        self._workers.ended.set()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(scouting, "BEAT_S", 0.02)


@pytest.fixture
def workers():
    return Workers()


def test_waiting_returns_when_so_many_are_there(workers):
    workers.at[A] = facts(A, 1)
    with workers.discovery() as discovery:
        assert [one.member.claim.name for one in discovery.wait_for(1, WITHIN_S)] == ["box1"]
        workers.at[B] = facts(B, 2)
        assert len(discovery.wait_for(2, WITHIN_S)) == 2
        assert len(discovery.workers) == 2
    assert workers.ended.is_set()


def test_waiting_in_vain_says_who_was_there_and_what_to_do(workers):
    workers.at[A] = facts(A, 1)
    with workers.discovery() as discovery:
        discovery.wait_for(1, WITHIN_S)
        with pytest.raises(WorkerUnreachable, match="1 of 3 workers are ready") as failure:
            discovery.wait_for(3, 0.2)
    assert "hyperlane doctor" in str(failure.value)


def test_joins_and_leaves_are_iterated_from_a_thread_until_the_end(workers):
    workers.at[A] = facts(A, 1)
    seen: list[str] = []
    left = threading.Event()
    with workers.discovery() as discovery:
        changes = discovery.changes()

        def follow() -> None:
            for change in changes:
                seen.append(str(change.member.state))
                if change.is_leave:
                    left.set()

        reader = threading.Thread(target=follow)
        reader.start()
        discovery.wait_for(1, WITHIN_S)
        del workers.at[A]
        assert left.wait(WITHIN_S)
    reader.join(WITHIN_S)
    assert not reader.is_alive()
    assert seen == ["ready", "suspect", "gone"]


async def test_the_same_for_coroutines(workers):
    workers.at[A] = facts(A, 1)
    seen: list[MemberState] = []
    async with workers.discovery() as discovery:
        assert len(await discovery.await_for(1, WITHIN_S)) == 1
        changes = discovery.changes()

        async def follow() -> None:
            seen.extend([change.member.state async for change in changes])

        reader = asyncio.create_task(follow())
        workers.at[B] = facts(B, 2)
        await discovery.await_for(2, WITHIN_S)
        with pytest.raises(WorkerUnreachable):
            await discovery.await_for(3, 0.1)
    await asyncio.wait_for(reader, WITHIN_S)
    assert seen == [MemberState.READY, MemberState.READY]


async def test_a_reader_that_is_cancelled_is_cancelled(workers):
    async with workers.discovery() as discovery:
        reader = asyncio.create_task(discovery.changes().__anext__())
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader


def test_a_closed_discovery_says_so(workers):
    discovery = workers.discovery()
    with pytest.raises(WorkerUnreachable, match="closed"):
        _ = discovery.workers
    with discovery:
        pass
    discovery.close()
    with pytest.raises(WorkerUnreachable, match="closed"):
        discovery.wait_for(1, 1)


def test_what_cannot_be_opened_is_raised_where_it_is_started():
    async def open_scout():
        raise ConfigError("no such interface")

    discovery = Discovery(open_scout)
    with pytest.raises(ConfigError, match="no such interface"):
        discovery.start()
    discovery.close()


# --- the probe -----------------------------------------------------------------------------------------------


class Client:
    def __init__(self, address: Address, peer: Peer | None, answers: list) -> None:
        self.address, self.peer, self.answers, self.closed = address, peer, answers, False

    async def describe(self, fingerprint: str = "", path_hint: str = "", timeout_s: float = 10.0) -> Described:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Described(answer, False)

    async def close(self) -> None:
        self.closed = True


def peer_of(node: int) -> Peer:
    return Peer(PeerName(ClusterId(bytes(16)), NodeRole.WORKER, NodeId(bytes([node]) * 16)), 1)


@pytest.fixture
async def listener():
    """The address of something that takes connections."""

    async def take(_reader, writer) -> None:
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    server.close()
    await server.wait_closed()


async def test_a_worker_that_says_another_node_than_its_certificate_is_refused(listener):
    probe = DescribeProbe(lambda address: Client(address, peer_of(2), [facts(address, 1)]))
    with pytest.raises(NotTrusted, match="its certificate"):
        await probe(listener, 5.0)
    await probe.close()


async def test_after_a_refusal_the_address_is_met_anew(listener):
    clients: list[Client] = []
    scripts = [[NotTrusted("another node answers")], [facts(listener, 1)]]

    def connect(address: Address) -> Client:
        clients.append(Client(address, peer_of(1), scripts[len(clients)]))
        return clients[-1]

    probe = DescribeProbe(connect)
    with pytest.raises(NotTrusted):
        await probe(listener, 5.0)
    assert clients[0].closed
    probed = await probe(listener, 5.0)
    assert probed.claim.name == "box1"
    assert probed.rtt_s > 0
    await probe.close()
    assert clients[1].closed


async def test_nothing_there_is_unreachable():
    probe = DescribeProbe(lambda address: Client(address, None, []))
    with pytest.raises(WorkerUnreachable):
        await probe(Address("127.0.0.1", 9), 2.0)
