"""Asks workers who they are over the control plane, and measures the way there. Finds nobody by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from hyperlane.cluster.discovery.scout import Probed
from hyperlane.cluster.membership import Claim, MemberId
from hyperlane.cluster.worker_client import Described
from hyperlane.core import Address, NodeId, WorkerFacts
from hyperlane.errors import ClusterError, HyperlaneError, NotTrusted, WorkerUnreachable
from hyperlane.wire.peer import Peer

NODE_BYTES = 16
KEPT_RTTS = 5


class Client(Protocol):
    """The part of `WorkerClient` that is needed here."""

    async def describe(self, fingerprint: str = "", path_hint: str = "", timeout_s: float = 10.0) -> Described: ...

    @property
    def peer(self) -> Peer | None: ...

    async def close(self) -> None: ...


class DescribeProbe:
    """A `Probe` over Describe. Keeps one client for each address; lives in one event loop."""

    def __init__(self, connect: Callable[[Address], Client]) -> None:
        self._connect = connect
        self._clients: dict[Address, Client] = {}
        self._rtts: dict[Address, list[float]] = {}

    async def __call__(self, address: Address, timeout_s: float) -> Probed:
        """As `Probe`.

        Raises:
            WorkerUnreachable: nothing answers.
            ClusterError: what answers cannot be used: another version, another cluster, no identity.

        """
        began_s = time.monotonic()
        rtt_s = await connect_time_s(address, timeout_s)
        rtts = self._rtts.setdefault(address, [])
        rtts[:] = [*rtts[1 - KEPT_RTTS :], rtt_s]
        if address not in self._clients:
            self._clients[address] = self._connect(address)
        client = self._clients[address]
        left_s = max(0.1, timeout_s - (time.monotonic() - began_s))
        try:
            facts = (await client.describe(timeout_s=left_s)).facts
        except HyperlaneError:
            # It speaks to the node that it first met and to no other: whoever has the address now is met anew.
            if self._clients.pop(address, None) is client:
                await client.close()
            raise
        return Probed(claim_of(facts, client.peer), facts, min(rtts))

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        clients, self._clients = self._clients, {}
        await asyncio.gather(*(client.close() for client in clients.values()))


def claim_of(facts: WorkerFacts, peer: Peer | None = None) -> Claim:
    """Who a worker says it is. `peer`: whom its certificate names, where it showed one.

    Raises:
        ClusterError: it does not say, or says something else than its certificate.

    """
    node = bytes.fromhex(facts.node)
    if peer is not None and peer.name.node != node:
        raise NotTrusted(f"the worker at {facts.control} says it is node {facts.node[:8]}, its certificate: {peer}")
    if len(node) != NODE_BYTES:
        raise ClusterError(f"the worker at {facts.control} does not say which node it is: update Hyperlane there")
    member = MemberId(NodeId(node), facts.control.port)
    return Claim(member, facts.machine, facts.name, facts.cluster, facts.hyperlane_version, facts.protocol)


async def connect_time_s(address: Address, timeout_s: float) -> float:
    """Seconds until a TCP connection stands: one round trip, with what the event loop adds.

    Raises:
        WorkerUnreachable: it does not stand in time.

    """
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except TimeoutError:
        raise WorkerUnreachable(f"nothing answers at {address} within {timeout_s:g} s") from None
    except OSError as error:
        raise WorkerUnreachable(f"nothing answers at {address}: {error.strerror or error}") from error
    took_s = time.monotonic() - began_s
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return took_s
