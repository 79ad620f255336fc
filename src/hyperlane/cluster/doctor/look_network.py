"""Looks at the network: hears adverts, tests multicast on each interface, knocks at ports. Judges nothing."""

from __future__ import annotations

import asyncio
import errno
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hyperlane.cluster.discovery.advert import Advert, Heard, NodeKind
from hyperlane.cluster.discovery.interfaces import Interface, InterfaceKind, parsed, ways_to
from hyperlane.cluster.discovery.mdns import MdnsInterface
from hyperlane.cluster.doctor.network_checks import MulticastFacts, PathFacts, PeerFacts, Reach
from hyperlane.cluster.trust import door_client
from hyperlane.core import Address, NodeId
from hyperlane.errors import HyperlaneError

LISTEN_S = 3.0
"""How long adverts are listened for; those that are there answer within a second."""
KNOCK_WITHIN_S = 2.0
KNOCKS = 5
_NEIGHBOURS = Path("/proc/net/arp")
_CLUSTER_OF_TESTS = "00000000d0c70100"
"""What the self-test's adverts name as their cluster, so that nobody takes them for workers."""


async def listen(
    interfaces: Sequence[Interface], machine: str, seconds: float = LISTEN_S
) -> tuple[list[MulticastFacts], list[Heard]]:
    """Advertise and browse on every interface at once; what was heard of ourselves (`machine`), and of others."""
    results = await asyncio.gather(*(_listen_on(one, machine, seconds) for one in interfaces))
    return [test for test, _ in results], [heard for _, adverts in results for heard in adverts]


async def _listen_on(interface: Interface, machine: str, seconds: float) -> tuple[MulticastFacts, list[Heard]]:
    """Two mDNS stacks on one interface, which find each other through the system's multicast."""
    node = NodeId(secrets.token_bytes(16))
    speaker, listener = MdnsInterface(interface, _nothing), MdnsInterface(interface, _nothing)
    try:
        await speaker.start()
        await listener.start()
        await speaker.advertise(Advert(node, "", _CLUSTER_OF_TESTS, "doctor", NodeKind.HEAD, "0", 1, 9))
        listener.browse()
        await asyncio.sleep(seconds)
        heard = [one for one in listener.heard.values() if one.advert.cluster != _CLUSTER_OF_TESTS]
        heard_self = any(one.advert.node == node for one in listener.heard.values())
    except OSError as error:
        return MulticastFacts(interface.name, error=error.strerror or str(error)), []
    finally:
        await speaker.close()
        await listener.close()
    others = {one.advert.machine for one in heard} - {machine}
    return MulticastFacts(interface.name, "", heard_self, len(others)), heard


def _nothing() -> None:
    return


async def peer(
    name: str, hosts: Sequence[str], port: int, interfaces: Sequence[Interface], *, heard: bool, on_lan: bool
) -> PeerFacts:
    """Knock at every address of a machine. `on_lan`: addresses on none of our networks are left out (adverts)."""
    ways = {way.host: way.interface for way in ways_to(hosts, interfaces, same_machine=not on_lan)}
    tried = list(ways) + [host for host in hosts if host not in ways and not on_lan]
    paths = await asyncio.gather(*(_path(host, port, ways.get(host)) for host in tried))
    return PeerFacts(name, port, heard, tuple(paths))


async def door(addresses: Sequence[Address], interfaces: Sequence[Interface]) -> PeerFacts:
    """The head's door, at the first of its addresses that answers, and what its clock says."""
    tried = [await peer("the head", (one.host,), one.port, interfaces, heard=True, on_lan=False) for one in addresses]
    reached = next((one for one in tried if any(path.reach is Reach.OPEN for path in one.paths)), None)
    if reached is None:
        return replace(tried[0], paths=tuple(path for one in tried for path in one.paths))
    offset_s = None
    with suppress(OSError, HyperlaneError):
        address = Address(reached.paths[0].host, reached.port)
        offset_s = await asyncio.to_thread(door_client.clock_offset_s, address)
    return replace(reached, clock_offset_s=offset_s)


async def _path(host: str, port: int, interface: Interface | None) -> PathFacts:
    reach, rtts = Reach.SILENT, []
    for _ in range(KNOCKS):
        reach, took_s = await _knock(Address(host, port))
        if reach is not Reach.OPEN:
            break
        rtts.append(took_s)
    if reach is Reach.SILENT and interface is not None and _is_missing(host):
        reach = Reach.NO_HOST
    kind: InterfaceKind | None = interface.kind if interface else None
    speed = interface.speed_mbit if interface else 0
    return PathFacts(host, interface.name if interface else "", kind, reach, min(rtts, default=None), speed)


async def _knock(address: Address) -> tuple[Reach, float]:
    """How a port answers, and after how many seconds."""
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(KNOCK_WITHIN_S):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except TimeoutError:
        return Reach.SILENT, 0.0
    except ConnectionRefusedError:
        return Reach.CLOSED, 0.0
    except OSError as error:
        return (Reach.NO_HOST if error.errno == errno.EHOSTUNREACH else Reach.NO_ROUTE), 0.0
    took_s = time.monotonic() - began_s
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return Reach.OPEN, took_s


def _is_missing(host: str) -> bool:
    """Whether the system asked for a machine with this address on the network and got no answer (Linux, IPv4)."""
    ip = parsed(host)
    if ip is None or ip.version != 4:
        return False
    try:
        lines = _NEIGHBOURS.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return False
    flags = {fields[0]: int(fields[2], 16) for line in lines if len(fields := line.split()) >= 4}
    return flags.get(host, 0) & 0x2 == 0
