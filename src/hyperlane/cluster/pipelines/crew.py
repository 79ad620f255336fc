"""The workers of a head: who they are, whether they answer, and which stages each holds. Knows no plan.

Lives in one event loop; several pipelines may share one crew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from hyperlane.cluster import heartbeat
from hyperlane.cluster.pipelines.facts import Attendance, Present
from hyperlane.cluster.pipelines.holdings import Holdings, Place
from hyperlane.cluster.planning import Names
from hyperlane.cluster.profile.measured import Node
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.cluster.worker_client import WorkerClient
from hyperlane.core import Address, HeadId, WorkerFacts
from hyperlane.errors import HyperlaneError, LoadFailed, WorkerBusy, WorkerUnreachable
from hyperlane.stage.orders import StageKey

T = TypeVar("T")

PROBE_S = 1.5
PROBES = 2
"""Patience with a worker that may be gone: seconds and tries."""


LEASE_CHECK_S = 0.25
"""How exactly a lease's end is waited for."""

log = logging.getLogger(__name__)


class Crew:
    """Clients of all workers by control address, and what they hold. `holdings`: told by whoever loads stages."""

    def __init__(
        self,
        addresses: Sequence[Address],
        head: HeadId,
        *,
        why_lost: Callable[[], str] = str,
        trust: HeadTrust | None = None,
    ) -> None:
        """`why_lost` may know how local workers ended; it may block for a moment. `trust`: the head's cluster."""
        self.head = head
        self.trust = trust
        self.holdings = Holdings()
        self._why_lost = why_lost
        self._names = Names()
        self._clients = {address: WorkerClient(address, trust) for address in addresses}
        self._silent: set[Address] = set()

    def __getitem__(self, address: Address) -> WorkerClient:
        """A worker's client.

        Raises:
            WorkerUnreachable: the worker was forgotten.

        """
        if address not in self._clients:
            raise WorkerUnreachable(f"the worker at {address} is gone for good")
        return self._clients[address]

    def __contains__(self, address: Address) -> bool:
        return address in self._clients

    def everyone(self) -> list[WorkerClient]:
        """All that are known, in the order in which they were."""
        return list(self._clients.values())

    def answering(self) -> list[WorkerClient]:
        """Those that answered when all were asked last, or were not asked yet."""
        return [client for address, client in self._clients.items() if address not in self._silent]

    # --- who is there ----------------------------------------------------------------------------------------

    def offer(self, address: Address) -> None:
        """A worker that the next plan may use. In the event loop; known ones change nothing."""
        if address not in self._clients:
            self._clients[address] = WorkerClient(address, self.trust)

    async def forget(self, address: Address) -> None:
        """A worker that will not come back."""
        self.holdings.dropped(address)
        client = self._clients.pop(address, None)
        if client is not None:
            await client.close()

    async def nodes(self, timeout_s: float) -> list[Node]:
        """All workers as they are now, in the order of their addresses; all are asked at once.

        Raises:
            WorkerUnreachable, VersionMismatch, NotTrusted: of the first worker that fails.

        """
        clients = self.everyone()
        described = await self.together(client.describe(timeout_s=timeout_s) for client in clients)
        return [Node(client, self.named(said.facts)) for client, said in zip(clients, described, strict=True)]

    def named(self, facts: WorkerFacts) -> WorkerFacts:
        """A worker with the name that it has in plans."""
        return self._names.given(facts)

    async def settle(self, timeout_s: float) -> None:
        """Before the first plan: what an earlier life of this head left goes, and the leases of heads that died end.

        Returns at once where a head that lives holds a worker: a load there is refused with its name.

        Raises:
            HyperlaneError: of the first worker that does not answer.

        """
        await self.together(self._settle(client, timeout_s) for client in self.everyone())

    async def _settle(self, client: WorkerClient, timeout_s: float) -> None:
        await client.describe(timeout_s=timeout_s)
        health = await client.health(self.head, timeout_s)
        if health.holds_lease:
            await client.unload(self.head)
        while not health.holds_lease and health.lease_s > 0:
            left_s, pause_s = health.lease_s, min(health.lease_s + LEASE_CHECK_S, heartbeat.INTERVAL_S + LEASE_CHECK_S)
            log.warning("%s is held by another head; if that is gone, for %.0f s more", client.name, left_s)
            await asyncio.sleep(pause_s)
            health = await client.health(self.head, timeout_s)
            if health.lease_s > left_s - pause_s + 2 * LEASE_CHECK_S:  # renewed meanwhile
                return

    async def look(self) -> Attendance:
        """Ask all workers at once, with little patience, what they are and what they hold; renews their leases.

        One that answers at two addresses is counted once: where it holds stages, else at the one known first.
        """
        clients = self.everyone()
        told = await asyncio.gather(*(self._ask(client) for client in clients))
        said = dict(zip(clients, told, strict=True))
        for twin in self._twins({one: facts for one, facts in said.items() if isinstance(facts, WorkerFacts)}):
            log.info("%s answers at %s too", twin.name, twin.address)
            del said[twin]
            await self.forget(twin.address)
        answers = await asyncio.gather(*(self._look_at(client, facts) for client, facts in said.items()))
        missing = [(one.address, why) for one, why in zip(said, answers, strict=True) if not isinstance(why, Present)]
        for address, _ in missing:
            self.holdings.silent(address)
        self._silent = {address for address, _ in missing}
        return Attendance(tuple(one for one in answers if isinstance(one, Present)), tuple(missing))

    def _twins(self, known: Mapping[WorkerClient, WorkerFacts]) -> list[WorkerClient]:
        """Those that are a worker which is there at another address as well."""
        chosen: dict[tuple[str, str, int], WorkerClient] = {}
        for client in sorted(known, key=lambda client: not self.holdings.is_sure(client.address)):
            facts = known[client]
            if facts.node:
                chosen.setdefault((facts.node, facts.machine, facts.control.port), client)
        return [client for client, facts in known.items() if facts.node and client not in chosen.values()]

    async def _ask(self, client: WorkerClient) -> WorkerFacts | HyperlaneError:
        try:
            return (await client.describe(timeout_s=PROBE_S, tries=PROBES)).facts
        except HyperlaneError as error:
            return error

    async def _look_at(self, client: WorkerClient, facts: WorkerFacts | HyperlaneError) -> Present | HyperlaneError:
        if isinstance(facts, HyperlaneError):
            return facts
        try:
            return await self._held_by(client, facts)
        except HyperlaneError as error:
            return error

    async def _held_by(self, client: WorkerClient, facts: WorkerFacts) -> Present:
        asked = self.holdings.of(client.address)
        health = await client.health(self.head, PROBE_S, PROBES)
        if not health.holds_lease and health.lease_s > 0:
            raise WorkerBusy(f"{client.name} at {client.address} is held by another head")
        for stray in self.holdings.said(client.address, (key for key, _ in health.stages), asked):
            await client.unload(self.head, stray)
        node = Node(client, self.named(facts))
        return Present(node, self.holdings.bytes_of(client.address), health.draining)

    # --- what they hold --------------------------------------------------------------------------------------

    async def drop(self, places: Collection[Place]) -> None:
        """Drop stages."""
        await asyncio.gather(*(self._drop(*place) for place in places))

    async def _drop(self, where: Address, key: StageKey) -> None:
        self.holdings.dropped(where, key)
        if where in self._clients:
            # A worker that cannot be told is asked what it holds before it is used again.
            with suppress(HyperlaneError):
                await self._clients[where].unload(self.head, key)

    async def release(self) -> None:
        """Drop every stage everywhere, and the leases."""
        await asyncio.gather(*(self._release(client) for client in self.everyone()))

    async def _release(self, client: WorkerClient) -> None:
        # A worker that cannot be told finds out when its lease runs out.
        self.holdings.dropped(client.address)
        with suppress(HyperlaneError):
            await client.unload(self.head)

    async def close(self) -> None:
        """Release all, and end the connections. Idempotent."""
        await self.release()
        clients, self._clients = self.everyone(), {}
        for client in clients:
            await client.close()

    # --- all at once -----------------------------------------------------------------------------------------

    async def together(self, calls: Iterable[Coroutine[None, None, T]]) -> list[T]:
        """The results in order; the first error ends the other calls and is raised, with what is known besides."""
        tasks = [asyncio.ensure_future(call) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        except (WorkerUnreachable, LoadFailed) as error:
            reasons = await asyncio.to_thread(self._why_lost)
            raise type(error)("\n".join(filter(None, (str(error), reasons)))) from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def with_own(present: Present) -> Node:
    """A worker as a planner should count it: what its present stages take is free for the next ones."""
    facts = present.node.facts
    pool = facts.pool_free + present.held_bytes if facts.pool_free else 0
    now = replace(facts, memory_free=facts.memory_free + present.held_bytes, pool_free=pool)
    return replace(present.node, facts=now)
