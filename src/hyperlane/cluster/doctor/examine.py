"""The whole examination: looks, then judges. One coroutine, a few seconds."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperlane.cluster.discovery import system
from hyperlane.cluster.discovery.advert import Heard, NodeKind
from hyperlane.cluster.discovery.interfaces import Interface, suitable
from hyperlane.cluster.discovery.machine_hash import machine_hash
from hyperlane.cluster.doctor import look, look_network
from hyperlane.cluster.doctor import machine_checks as machine
from hyperlane.cluster.doctor import network_checks as network
from hyperlane.cluster.doctor.finding import Finding
from hyperlane.cluster.trust import worker_trust
from hyperlane.cluster.trust.binding import Machine
from hyperlane.core import Address


@dataclass(frozen=True, slots=True)
class Examination:
    """What to look at. `peers`: addresses that should be reachable; `listen`: a worker's here; `needed_bytes`: of disk.

    `interfaces`: names to keep to, empty for all. `loopback`: also look for workers on this machine's own.
    """

    cache: Path
    trust: Path
    listen: Address
    version: str
    protocol: int
    machine: Machine | None
    peers: tuple[Address, ...] = ()
    interfaces: tuple[str, ...] = ()
    mdns: bool = True
    loopback: bool = False
    needed_bytes: int = 0
    listen_s: float = look_network.LISTEN_S


async def examine(
    what: Examination, list_interfaces: Callable[[], Sequence[Interface]] = system.interfaces
) -> list[Finding]:
    """All findings, those of this machine first."""
    identity, credentials = await asyncio.to_thread(look.identity, what.trust, what.machine)
    findings = [
        *machine.check_runtime(await asyncio.to_thread(look.runtime)),
        machine.check_disk(look.disk(what.cache), what.needed_bytes),
        machine.check_clock(look.clock(credentials)),
        machine.check_identity(identity),
        machine.check_port(await asyncio.to_thread(look.port, what.listen)),
    ]
    there = list(list_interfaces())
    findings += network.check_interfaces(there, what.interfaces)
    findings.append(network.check_listen(what.listen.host, there))
    usable = [
        one for one in suitable(there, loopback=what.loopback) if not what.interfaces or one.name in what.interfaces
    ]
    own_machine = machine_hash(what.machine)
    tests, heard = await look_network.listen(usable, own_machine, what.listen_s) if what.mdns else ([], [])
    peers = await _peers(what, usable, heard)
    findings += network.check_multicast(tests, peers)
    doors = worker_trust.door_addresses(what.trust) if not identity.trouble else ()
    if doors:
        peers.append(await look_network.door(doors, usable))
    findings += [finding for peer in peers for finding in network.check_peer(peer)]
    findings += network.check_heads(heard, identity.cluster)
    findings += network.check_versions(heard, what.version, what.protocol)
    findings += network.check_duplicates(heard, identity.node, own_machine, platform.node() or "unnamed")
    return findings


async def _peers(what: Examination, interfaces: Sequence[Interface], heard: Sequence[Heard]) -> list[network.PeerFacts]:
    """Everybody who is heard or was named, each machine once."""
    own = machine_hash(what.machine)
    by_worker: dict[tuple[bytes, str, int], list[Heard]] = {}
    for one in heard:
        if one.advert.kind is NodeKind.WORKER and (one.advert.machine != own or what.loopback):
            by_worker.setdefault((one.advert.node, one.advert.machine, one.advert.control_port), []).append(one)
    hosts_of = {key: list(dict.fromkeys(h for one in ones for h in one.hosts)) for key, ones in by_worker.items()}
    known = {(host, key[2]) for key, hosts in hosts_of.items() for host in hosts}
    asked = [
        look_network.peer(
            by_worker[key][0].advert.name, hosts, key[2], interfaces, heard=True, on_lan=not what.loopback
        )
        for key, hosts in hosts_of.items()
    ]
    asked += [
        look_network.peer(str(address), (address.host,), address.port, interfaces, heard=False, on_lan=False)
        for address in what.peers
        if (address.host, address.port) not in known
    ]
    return list(await asyncio.gather(*asked))
