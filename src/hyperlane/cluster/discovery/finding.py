"""From configuration to what finds and what is found: a worker's identity and beacon, a head's scout."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable
from functools import partial

from hyperlane import __version__
from hyperlane.cluster.discovery import system
from hyperlane.cluster.discovery.advert import Advert, NodeKind, short_cluster
from hyperlane.cluster.discovery.beacon import Beacon
from hyperlane.cluster.discovery.machine_hash import machine_hash
from hyperlane.cluster.discovery.probe import DescribeProbe
from hyperlane.cluster.discovery.scout import Scout, ScoutOptions
from hyperlane.cluster.discovery.watch import MdnsWatch
from hyperlane.cluster.machine import host_id, is_loopback
from hyperlane.cluster.membership import Claim, MemberId
from hyperlane.cluster.messages import CONTROL_PROTOCOL
from hyperlane.cluster.trust.door import Arrival
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.cluster.trust.node import node_identity
from hyperlane.cluster.trust.opening import OpenDoor, machine_of, trust_folder
from hyperlane.cluster.trust.worker_trust import WorkerTrust
from hyperlane.cluster.worker import WorkerIdentity
from hyperlane.cluster.worker_client import WorkerClient
from hyperlane.config import DiscoveryConfig, Paths
from hyperlane.core import Address


def identity_of(paths: Paths, trust: WorkerTrust | None) -> WorkerIdentity:
    """Who a worker says it is.

    Raises:
        DuplicateIdentity: the state directory was copied from another machine.
        NotTrusted: a file is damaged.

    """
    machine = machine_of(paths)
    node = node_identity(trust_folder(paths), machine)
    cluster = short_cluster(trust.credentials.cluster) if trust is not None else ""
    hashed = machine_hash(machine)
    return WorkerIdentity(node.hex(), hashed, host_id(hashed), cluster)


# --- a worker ------------------------------------------------------------------------------------------------


def beacon(config: DiscoveryConfig, listen: Address, trust: WorkerTrust | None) -> Beacon | None:
    """What lets a worker be found; None for one that only this machine reaches."""
    if is_loopback(listen.host) and not config.loopback:
        return None
    watch = None
    if config.mdns:
        only = _interfaces_with(listen.host) or config.interfaces
        watch = MdnsWatch(browse=False, loopback=config.loopback, only=only)
    return Beacon(watch, partial(_register, trust) if trust is not None and trust.has_door else None)


def _interfaces_with(host: str) -> tuple[str, ...]:
    """The interface that has an address; none for the address that stands for all."""
    return tuple(one.name for one in system.interfaces() if any(str(network.ip) == host for network in one.networks))


def _register(trust: WorkerTrust, advert: Advert) -> None:
    trust.register(advert.control_port, advert.data_port, advert.machine, advert.name)


# --- a head --------------------------------------------------------------------------------------------------


class Lookout:
    """A head's scout and the connections that it asks with."""

    def __init__(
        self, config: DiscoveryConfig, paths: Paths, trust: HeadTrust | None, door: OpenDoor | None = None
    ) -> None:
        """`trust`: this head's cluster; without one, workers of this machine alone can be used. `door`: its own."""
        machine = machine_of(paths)
        options = ScoutOptions(
            cluster=short_cluster(trust.credentials.cluster) if trust is not None else "",
            protocol=CONTROL_PROTOCOL,
            machine=machine_hash(machine),
            addresses=config.addresses,
        )
        self._probe = DescribeProbe(lambda address: WorkerClient(address, trust))
        watch = MdnsWatch(loopback=config.loopback, only=config.interfaces) if config.mdns else None
        self.scout = Scout(options, self._probe, watch)
        self._watch, self._door = watch, door
        self._advert = _head_advert(trust, options.machine, door) if trust is not None and door is not None else None

    async def start(self) -> None:
        """Begin to look, and to say where the door is. In the event loop that the scout is to live in."""
        if self._watch is not None and self._advert is not None:
            await self._watch.advertise(self._advert)
        if self._door is not None:
            self._door.tell_arrivals(arrivals(self.scout, asyncio.get_running_loop().call_soon_threadsafe))
        await self.scout.start()

    async def close(self) -> None:
        """End the scout, then its connections. Idempotent."""
        await self.scout.close()
        await self._probe.close()


def _head_advert(trust: HeadTrust, machine: str, door: OpenDoor) -> Advert | None:
    if not door.port:
        return None
    name, cluster = platform.node() or "head", short_cluster(trust.credentials.cluster)
    return Advert(trust.node, machine, cluster, name, NodeKind.HEAD, __version__, CONTROL_PROTOCOL, door.port)


def arrivals(scout: Scout, call_in_loop: Callable[..., object]) -> Callable[[Arrival], None]:
    """What a door tells, as the scout wants it. `call_in_loop`: the loop's `call_soon_threadsafe`."""

    def tell(arrival: Arrival) -> None:
        name = arrival.peer.name
        claim = Claim(
            MemberId(name.node, arrival.address.port),
            arrival.machine,
            arrival.name,
            short_cluster(name.cluster),
            arrival.version,
            arrival.protocol,
        )
        call_in_loop(scout.register, claim, arrival.address)

    return tell
