"""Brings a pipeline up: from workers to a running ring, from one ring to the next, and to nothing.

plan → epoch → load → connect → ring → heartbeat. What a worker holds already serves the next epoch as well.
Knows no request and no token, and not when to change. Lives in one event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace

from hyperlane.cluster.heartbeat import OnLeaving, OnLost
from hyperlane.cluster.identity import HeadIdentity
from hyperlane.cluster.pipelines.crew import Crew
from hyperlane.cluster.pipelines.facts import Ask, Pipeline
from hyperlane.cluster.pipelines.holdings import Place
from hyperlane.cluster.pipelines.loader import StageLoader
from hyperlane.cluster.pipelines.running_ring import RunningRing
from hyperlane.cluster.planning import Planned
from hyperlane.core import Address, Epoch, Kept
from hyperlane.stage.orders import LoadOrder, StageKey
from hyperlane.wire.rows import MOST_SKIPPED_FROM


class Controller:
    """Brings pipelines up, one in place of another, and takes the last one down. Not for two tasks at once."""

    def __init__(self, crew: Crew, ask: Ask, identity: HeadIdentity, loader: StageLoader) -> None:
        self.crew = crew
        self._ask = ask
        self._identity = identity
        self._loader = loader
        self._ring = RunningRing(crew)
        self._unneeded: Sequence[Place] = ()
        self._last: Epoch | None = None

    @property
    def blamed(self) -> set[Address]:
        """Workers at which the last `change` failed."""
        return self._loader.blamed

    async def change(
        self,
        planned: Planned,
        on_lost: OnLost,
        on_leaving: OnLeaving | None = None,
        let_go: Callable[[], Awaitable[None]] | None = None,
    ) -> Pipeline:
        """Bring a plan up in place of what runs: load what no worker holds, take over what does, link.

        `let_go` makes the head let go of the running ring; what is new is loaded beside that before. Without it nothing
        runs any more, and if anything has to be loaded, what the plan does not need is dropped first. After an error
        what was loaded stays, for the next try; if `let_go` was called nothing runs. `tidy` drops the rest.

        Raises:
            ClusterError: a worker cannot be reached, is busy, of another version, or failed; the model does not fit.
            ModelError, TransferError: the weights cannot be used, or did not arrive.
            LinkError: the ring could not be closed.
            HyperlaneError: in any case `blamed` has the workers at which it failed.

        """
        self._loader.blamed.clear()
        plan = planned.plan
        epoch = self._identity.next_epoch()
        orders = self._loader.orders(self._ask, plan, epoch)
        new = [place for place in orders if place[1].held is None]
        kept = [place for place in orders if place[1].held is not None]
        workers = {where for where, _ in orders}
        if let_go is None:
            await self._ring.drop()
            if new:  # else nothing needs the room, and requests wait
                wanted = {(where, order.held) for where, order in kept if order.held is not None}
                await self.crew.drop(self._unwanted(wanted, workers))
        loaded = await self._loader.load(self._ask, new, workers)
        if let_go is not None:
            await let_go()
            await self._ring.drop()
        loaded |= await self._loader.load(self._ask, kept, workers)
        in_order = [loaded[stage.index] for stage in plan.stages]
        pipeline = await self._ring.link(self._ask, planned, epoch, in_order, (on_lost, on_leaving))
        pipeline = replace(pipeline, kept=kept_of([order for _, order in orders], self._last))
        self._last = epoch
        self._unneeded = self._unwanted({(where, order.key) for where, order in orders}, workers)
        return pipeline

    async def tidy(self) -> None:
        """Drop what the pipeline that was brought up last does not need."""
        unneeded, self._unneeded = self._unneeded, ()
        await self.crew.drop(unneeded)

    async def clear(self) -> None:
        """Close the ring and drop every stage; leases and connections stay."""
        await self._ring.drop()
        await self.crew.drop(self._unwanted(()))

    def runs(self, pipeline: Pipeline) -> bool:
        """Whether this pipeline is the one that was brought up last, and was not taken down."""
        return self._ring.is_of(pipeline)

    async def give_up_what_is_new(self, running: Pipeline) -> None:
        """After a `change` that failed before the head let go: drop all that the running plan does not need."""
        stages = running.plan.stages
        needed = {(one.worker.control, StageKey(running.epoch, one.index)) for one in stages}
        await self.crew.drop(self._unwanted(needed))

    async def close(self) -> None:
        """Close the ring; what workers hold is the crew's. Idempotent."""
        await self._ring.drop()

    # --- what is left of the last one ------------------------------------------------------------------------

    def _unwanted(self, wanted: Collection[Place], workers: Collection[Address] = ()) -> Sequence[Place]:
        """What was loaded here, and what a spare holds on these workers, but what is wanted."""
        return self.crew.holdings.besides(wanted, self._loader.owner, workers)


def kept_of(orders: Sequence[LoadOrder], last: Epoch | None) -> Kept | None:
    """What a pipeline's stages, in order, hold of the last one's KV entries: those at its end that served in both."""
    first = len(orders)
    while first and (held := orders[first - 1].held) is not None and held.epoch == last:
        first -= 1
    return Kept(last.counter, first) if last is not None and first < min(len(orders), MOST_SKIPPED_FROM + 1) else None
