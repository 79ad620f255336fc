"""Brings a pipeline up: from workers to a running ring, from one ring to the next, and to nothing.

plan → epoch → load → connect → ring → heartbeat. What a worker holds already serves the next epoch as well.
Knows no request and no token, and not when to change. Lives in one event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hyperlane.cluster.heartbeat import OnLeaving, OnLost
from hyperlane.cluster.identity import HeadIdentity
from hyperlane.cluster.pipelines.crew import Crew
from hyperlane.cluster.pipelines.facts import Ask, Pipeline
from hyperlane.cluster.pipelines.loader import StageLoader
from hyperlane.cluster.pipelines.running_ring import RunningRing
from hyperlane.cluster.planning import Outlook, Planned, Planning
from hyperlane.core import Address
from hyperlane.stage.orders import StageKey


class Controller:
    """Brings pipelines up, one in place of another, and takes the last one down. Not for two tasks at once."""

    def __init__(self, crew: Crew, identity: HeadIdentity, loader: StageLoader) -> None:
        self.crew = crew
        self._identity = identity
        self._loader = loader
        self._ring = RunningRing(crew)

    @property
    def blamed(self) -> set[Address]:
        """Workers at which the last `change` failed."""
        return self._loader.blamed

    async def plan(self, ask: Ask, planning: Planning) -> Planned:
        """Plan now with what is there. Raises as `Crew.nodes` and `Planning.now`."""
        return await planning.now(ask.wanted, await self.crew.nodes(ask.connect_timeout_s))

    async def outlook(self, ask: Ask, planning: Planning) -> Outlook:
        """What could be planned now. Raises as `Crew.nodes` and `Planning.outlook`."""
        return await planning.outlook(ask.wanted, await self.crew.nodes(ask.connect_timeout_s))

    async def start(
        self, ask: Ask, planning: Planning, on_lost: OnLost, on_leaving: OnLeaving | None = None
    ) -> Pipeline:
        """Plan, load and link; after an error nothing is left at any worker.

        Raises:
            ClusterError: a worker cannot be reached, is busy, of another version, or failed; the model does not fit.
            ConfigError: the layers that were asked for are no placement on these workers.
            ModelError, TransferError: the weights cannot be used, or did not arrive.
            LinkError: the ring could not be closed.

        """
        await self.crew.settle(ask.connect_timeout_s)
        planned = await self.plan(ask, planning)
        try:
            return await self.change(ask, planned, on_lost, on_leaving)
        except BaseException:
            await self._ring.drop()
            await self.crew.release()
            raise

    async def change(
        self,
        ask: Ask,
        planned: Planned,
        on_lost: OnLost,
        on_leaving: OnLeaving | None = None,
        let_go: Callable[[], Awaitable[None]] | None = None,
    ) -> Pipeline:
        """Bring a plan up in place of what runs: load what no worker holds, take over what does, link, drop the rest.

        `let_go` makes the head let go of the running ring; what is new is loaded beside that before. Without it nothing
        runs any more, and what the plan does not need is dropped first. After an error what was loaded stays, for the
        next try; if `let_go` was called nothing runs.

        Raises:
            HyperlaneError: as `start`; `blamed` has the workers at which it failed.

        """
        self._loader.blamed.clear()
        plan = planned.plan
        epoch = self._identity.next_epoch()
        orders = self._loader.orders(ask, plan, epoch)
        if let_go is None:
            await self._ring.drop()
            await self.crew.drop_besides({(where, order.held) for where, order in orders if order.held is not None})
        loaded = await self._loader.load(ask, [place for place in orders if place[1].held is None], plan)
        if let_go is not None:
            await let_go()
            await self._ring.drop()
        loaded |= await self._loader.load(ask, [place for place in orders if place[1].held is not None], plan)
        in_order = [loaded[stage.index] for stage in plan.stages]
        pipeline = await self._ring.link(ask, planned, epoch, in_order, (on_lost, on_leaving))
        await self.crew.drop_besides({(where, order.key) for where, order in orders})
        return pipeline

    async def clear(self) -> None:
        """Close the ring and drop every stage; leases and connections stay."""
        await self._ring.drop()
        await self.crew.drop_besides(())

    def runs(self, pipeline: Pipeline) -> bool:
        """Whether this pipeline is the one that was brought up last, and was not taken down."""
        return self._ring.is_of(pipeline)

    async def give_up_what_is_new(self, running: Pipeline) -> None:
        """After a `change` that failed before the head let go: drop all that the running plan does not need."""
        stages = running.plan.stages
        await self.crew.drop_besides({(one.worker.control, StageKey(running.epoch, one.index)) for one in stages})

    async def close(self) -> None:
        """Close the ring, drop every stage, release the leases and the connections. Idempotent."""
        await self._ring.drop()
        await self.crew.close()
