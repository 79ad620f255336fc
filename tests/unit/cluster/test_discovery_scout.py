"""The scout against programmed workers: no socket, and times that are short."""

from __future__ import annotations

import asyncio

import pytest

from hyperlane.cluster.discovery import scout as scouting
from hyperlane.cluster.discovery.probe import claim_of
from hyperlane.cluster.discovery.scout import Probed, Scout, ScoutOptions
from hyperlane.cluster.membership import Means, MemberState, Times
from hyperlane.core import Address, ElementType, NodeId, WorkerFacts
from hyperlane.errors import ClusterError, WorkerUnreachable

WITHIN_S = 20.0


def facts(
    address: Address, node: int = 1, machine: str = "a" * 16, name: str = "box", protocol: int = 1
) -> WorkerFacts:
    return WorkerFacts(
        name=name,
        control=address,
        data=Address(address.host, address.port + 1),
        device="toy",
        provider="toy",
        threads=1,
        memory_total=1,
        memory_free=1,
        element=ElementType.F32,
        hyperlane_version="0.1.0",
        protocol=protocol,
        runtime_version="0",
        node=(bytes([node]) * 16).hex(),
        machine=machine,
        cluster="",
    )


class Workers:
    """Who answers where; taking an entry away is pulling the cable."""

    def __init__(self, *there: WorkerFacts) -> None:
        self.at = {one.control: one for one in there}
        self.asked: list[Address] = []

    async def probe(self, address: Address, _timeout_s: float) -> Probed:
        self.asked.append(address)
        await asyncio.sleep(0)
        if address not in self.at:
            raise WorkerUnreachable(f"nothing answers at {address}")
        return Probed(claim_of(self.at[address]), self.at[address], 0.001)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(scouting, "BEAT_S", 0.02)


@pytest.fixture
async def look():
    """Starts scouts that are closed at the end."""
    scouts = []

    async def start(workers: Workers, *addresses: Address) -> Scout:
        times = Times(suspect_after_s=0.3, gone_after_s=1.0)
        scout = Scout(ScoutOptions("", 1, addresses=addresses, times=times), workers.probe, None)
        scouts.append(scout)
        await scout.start()
        return scout

    yield start
    for scout in scouts:
        await scout.close()


A, B = Address("10.0.0.1", 7420), Address("10.0.0.2", 7420)


async def next_state(queue) -> MemberState:
    return (await asyncio.wait_for(queue.get(), WITHIN_S)).member.state


async def test_an_address_by_hand_is_found_whenever_somebody_is_there(look):
    workers = Workers()
    scout = await look(workers, A)
    queue = scout.changes()
    workers.at[A] = facts(A)
    assert await next_state(queue) is MemberState.READY
    (found,) = scout.found(MemberState.READY)
    assert [source.means for source in found.member.sources] == [Means.STATIC]
    assert found.facts == facts(A)
    assert found.rtt_s == 0.001


async def test_waiting_ends_when_so_many_are_ready(look):
    workers = Workers(facts(A))
    scout = await look(workers, A, B)
    waiting = asyncio.create_task(scout.wait_ready(2))
    await asyncio.wait_for(scout.wait_ready(1), WITHIN_S)
    assert not waiting.done()
    workers.at[B] = facts(B, node=2)
    assert len(await asyncio.wait_for(waiting, WITHIN_S)) == 2


async def test_a_worker_that_falls_silent_is_suspect_then_gone_and_found_again(look):
    workers = Workers(facts(A))
    scout = await look(workers, A)
    queue = scout.changes()
    assert await next_state(queue) is MemberState.READY
    del workers.at[A]
    assert await next_state(queue) is MemberState.SUSPECT
    assert "nothing answers" in scout.found(MemberState.SUSPECT)[0].member.reason
    assert await next_state(queue) is MemberState.GONE
    workers.at[A] = facts(A)
    assert await next_state(queue) is MemberState.READY


async def test_a_worker_that_registers_is_asked_at_once(look):
    workers = Workers(facts(A))
    scout = await look(workers)
    scout.register(claim_of(facts(A)), A)
    (found,) = await asyncio.wait_for(scout.wait_ready(1), WITHIN_S)
    assert [source.means for source in found.member.sources] == [Means.TOKEN]


async def test_a_better_address_is_used_when_it_works_and_the_other_when_it_does_not(look):
    workers = Workers(facts(A))
    scout = await look(workers)
    claim = claim_of(facts(A))
    scout.register(claim, B)
    scout.register(claim, A)
    await asyncio.wait_for(scout.wait_ready(1), WITHIN_S)
    assert scout.found()[0].member.address == A


async def test_a_copied_identity_is_reported_and_the_first_one_stays(look):
    workers = Workers(facts(A, name="desk"))
    scout = await look(workers, A, B)
    await asyncio.wait_for(scout.wait_ready(1), WITHIN_S)
    workers.at[B] = facts(B, machine="b" * 16, name="lap")
    async with asyncio.timeout(WITHIN_S):
        while not scout.duplicates():
            await asyncio.sleep(0.01)
    (found,) = scout.found()
    assert found.member.address == A
    assert "'desk' and 'lap'" in str(scout.duplicates()[0])


async def test_a_worker_of_another_protocol_is_named_and_left_alone(look):
    workers = Workers(facts(A, protocol=2))
    scout = await look(workers)
    scout.register(claim_of(facts(A, protocol=2)), A)
    async with asyncio.timeout(WITHIN_S):
        while not scout.found()[0].member.reason:
            await asyncio.sleep(0.01)
    (found,) = scout.found()
    assert "update Hyperlane on this machine" in found.member.reason
    assert workers.asked == []


def test_a_worker_that_does_not_say_who_it_is_is_refused():
    with pytest.raises(ClusterError, match="which node"):
        claim_of(WorkerFacts(**{**_fields(facts(A)), "node": ""}))


def _fields(record: WorkerFacts) -> dict:
    return {name: getattr(record, name) for name in record.__slots__}


async def test_closing_leaves_no_task(look):
    workers = Workers(facts(A), facts(B, node=2))
    before = asyncio.all_tasks()
    scout = await look(workers, A, B)
    await asyncio.wait_for(scout.wait_ready(2), WITHIN_S)
    await scout.close()
    assert asyncio.all_tasks() == before
    assert NodeId(bytes([1]) * 16) in {found.member.id.node for found in scout.found()}
