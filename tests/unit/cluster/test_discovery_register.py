"""A worker's word at its head's door, over real sockets on loopback."""

from __future__ import annotations

import asyncio

import pytest

from hyperlane.cluster.discovery import beacon as beacons
from hyperlane.cluster.discovery.advert import Advert, NodeKind
from hyperlane.cluster.discovery.beacon import Beacon
from hyperlane.cluster.discovery.finding import arrivals
from hyperlane.cluster.trust import door_client, worker_trust
from hyperlane.cluster.trust.door import JoinDoor
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.core import Address
from hyperlane.errors import JoinRefused

LOOPBACK = Address("127.0.0.1", 0)


@pytest.fixture
def head(tmp_path):
    trust = HeadTrust(tmp_path / "head")
    door = JoinDoor(trust, LOOPBACK)
    yield trust, door
    door.close()


@pytest.fixture
def member(head, tmp_path):
    trust, door = head
    token = trust.create_token([door.address], lifetime_s=600.0, uses=1)
    return worker_trust.join(token.encode(), tmp_path / "worker", "bench-7")


def test_a_worker_that_registers_is_told_of_with_what_its_certificate_says(head, member):
    _, door = head
    told = []
    door.on_registered = told.append
    member.register(7420, 7421, "a" * 16, "bench-7:7420")
    (arrival,) = told
    assert arrival.peer.name == member.credentials.name
    assert arrival.address == Address("127.0.0.1", 7420)
    assert (arrival.machine, arrival.name) == ("a" * 16, "bench-7:7420")


def test_a_removed_node_registers_in_vain(head, member):
    trust, door = head
    told = []
    door.on_registered = told.append
    trust.remove_node("bench-7")
    with pytest.raises(JoinRefused, match="removed"):
        member.register(7420, 7421, "", "bench-7")
    assert told == []


@pytest.mark.parametrize(("port", "machine"), [(0, ""), (70000, ""), (7420, "../../etc"), (7420, "a" * 80)])
def test_a_registration_that_makes_no_sense_is_refused(head, member, port, machine):
    _, door = head
    told = []
    door.on_registered = told.append
    with pytest.raises(JoinRefused, match="no sense"):
        member.register(port, 0, machine, "bench-7")
    assert told == []


def test_the_doors_clock_is_told_to_anybody(head):
    assert abs(door_client.clock_offset_s(head[1].address)) < 5.0


def test_an_arrival_reaches_the_scout_as_a_claim(head, member):
    _, door = head
    calls = []

    class Recorder:
        def register(self, claim, address) -> None:
            calls.append((claim, address))

    door.on_registered = arrivals(Recorder(), lambda function, *given: function(*given))
    member.register(7420, 7421, "a" * 16, "bench-7")
    ((claim, address),) = calls
    assert claim.member.node == member.credentials.name.node
    assert claim.cluster == member.credentials.cluster.hex()[:16]
    assert address == Address("127.0.0.1", 7420)


async def test_a_beacon_tries_again_until_the_head_is_there(monkeypatch):
    monkeypatch.setattr(beacons, "REGISTER_AGAIN_S", 0.01)
    tries = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def register(advert: Advert) -> None:
        tries.append(advert)
        if len(tries) < 3:
            raise JoinRefused("nothing answers")
        loop.call_soon_threadsafe(done.set)

    advert = Advert(b"n" * 16, "", "", "bench", NodeKind.WORKER, "0.1.0", 1, 7420)
    beacon = Beacon(None, register)
    await beacon.start(advert)
    await asyncio.wait_for(done.wait(), 20)
    await beacon.close()
    assert tries == [advert] * 3
