"""What is around a running head: who was found before its plan, who comes later, and all of it in its status.

For threads; the scout lives in the head's control-plane loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from hyperlane.cluster.background import BackgroundLoop
from hyperlane.cluster.discovery.finding import Lookout
from hyperlane.cluster.discovery.scout import Found
from hyperlane.cluster.machine import is_loopback
from hyperlane.cluster.membership import MemberState
from hyperlane.core import Address, HeadStatus, NodeStatus, Plan

log = logging.getLogger(__name__)

Offer = Callable[[Address], None]
"""Told in the loop of a worker that can be used from now on."""


class Surroundings:
    """Looks for workers from construction until `close`."""

    def __init__(self, loop: BackgroundLoop, lookout: Lookout) -> None:
        """Begin to look."""
        self._loop = loop
        self._lookout = lookout
        self._offering: asyncio.Task[None] | None = None
        self._closed = False
        loop.run(lookout.start())

    def close(self) -> None:
        """Stop looking. Idempotent."""
        self._closed = True
        self._loop.run(self._end())

    def wait(self, count: int, timeout_s: float) -> tuple[Address, ...]:
        """Wait until so many workers can be used, at most so long; where those are that can, the best way to each."""
        return self._loop.run(self._wait(count, timeout_s))

    def offer_to(self, offer: Offer) -> None:
        """From now on tell of every worker that comes."""
        self._loop.run(self._begin_offering(offer))

    def complete(self, status: HeadStatus) -> HeadStatus:
        """A head's status with the nodes that it knows of. From any thread but the loop's own."""
        if self._closed:
            return status
        found, duplicates = self._loop.run(self._everybody())
        nodes = (*(_of_found(one, status.plans) for one in found), *_others(status.plans, found))
        return replace(status, nodes=nodes, troubles=duplicates)

    # --- in the loop -----------------------------------------------------------------------------------------

    async def _end(self) -> None:
        if self._offering is not None:
            self._offering.cancel()
            with suppress(asyncio.CancelledError):
                await self._offering
            self._offering = None
        await self._lookout.close()

    async def _wait(self, count: int, timeout_s: float) -> tuple[Address, ...]:
        scout = self._lookout.scout
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await scout.wait_ready(count)
        ready = scout.found(MemberState.READY)
        return tuple(one.member.address for one in ready if one.member.address is not None)

    async def _begin_offering(self, offer: Offer) -> None:
        self._offering = asyncio.create_task(self._offer(offer))

    async def _offer(self, offer: Offer) -> None:
        queue = self._lookout.scout.changes()
        while True:
            change = await queue.get()
            member = change.member
            if member.state is MemberState.READY and member.address is not None:
                offer(member.address)
                if change.is_join:
                    log.info("%s can be used by the next plan", member.claim.name)

    async def _everybody(self) -> tuple[tuple[Found, ...], tuple[str, ...]]:
        scout = self._lookout.scout
        return scout.found(), tuple(str(one) for one in scout.duplicates())


def _of_found(found: Found, plans: Sequence[Plan]) -> NodeStatus:
    member, facts = found.member, found.facts
    return NodeStatus(
        name=member.claim.name,
        node=member.id.node.hex(),
        address=member.address,
        state=str(member.state),
        found=tuple(sorted(str(source) for source in member.sources)),
        in_plan=any(stage.worker.control == member.address for plan in plans for stage in plan.stages),
        device=facts.device if facts else "",
        version=member.claim.version,
        memory_total=facts.memory_total if facts else 0,
        memory_free=facts.memory_free if facts else 0,
        rtt_us=found.rtt_s * 1e6,
        reason=member.reason if member.state is not MemberState.READY else "",
    )


def _others(plans: Sequence[Plan], found: tuple[Found, ...]) -> tuple[NodeStatus, ...]:
    """The workers of plans that nobody had to look for: this machine's own, and those that were named."""
    known = {one.member.address for one in found}
    workers = {stage.worker.control: stage.worker for plan in plans for stage in plan.stages}
    return tuple(
        NodeStatus(
            name=worker.name,
            node=worker.node,
            address=address,
            state=str(MemberState.READY),
            found=("local" if is_loopback(address.host) else "named",),
            in_plan=True,
            device=worker.device,
            version=worker.hyperlane_version,
            memory_total=worker.memory_total,
            memory_free=worker.memory_free,
        )
        for address, worker in workers.items()
        if address not in known
    )
