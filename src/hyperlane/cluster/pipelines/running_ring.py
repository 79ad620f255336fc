"""The ring of one pipeline: loaded stages linked with each other and with the head, watched, and let go."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from itertools import pairwise

from hyperlane.cluster.heartbeat import Heartbeat, OnLeaving, OnLost, Watched
from hyperlane.cluster.pipelines.crew import Crew
from hyperlane.cluster.pipelines.facts import Ask, Pipeline
from hyperlane.cluster.planning import Planned
from hyperlane.cluster.stage_orders import check_elements, specs_of
from hyperlane.cluster.worker_client import Loaded
from hyperlane.core import Epoch
from hyperlane.stage.orders import StageKey
from hyperlane.stage.terms import hello_to
from hyperlane.wire.frame import Role
from hyperlane.wire.link import Ring
from hyperlane.wire.ring import TcpRing


class RunningRing:
    """At most one ring at a time, with the heartbeat of its workers."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._heartbeat: Heartbeat | None = None
        self._ring: Ring | None = None

    def is_of(self, pipeline: Pipeline) -> bool:
        """Whether this pipeline's ring is the one that was linked last, and was not dropped."""
        return self._ring is pipeline.ring

    async def link(
        self,
        ask: Ask,
        planned: Planned,
        epoch: Epoch,
        loaded: Sequence[Loaded],
        tell: tuple[OnLost, OnLeaving | None],
    ) -> Pipeline:
        """Connect each loaded stage to its next and the head to both ends; `tell`: of what the heartbeat finds.

        Raises:
            ClusterError, LinkError: the ring could not be closed.

        """
        plan = planned.plan
        check_elements(plan, loaded)
        keys = [StageKey(epoch, stage.index) for stage in plan.stages]
        clients = [self._crew[stage.worker.control] for stage in plan.stages]
        await self._crew.together(
            client.connect(key, planned.data_port(stage.worker, following.worker), following_client.node)
            for client, key, (stage, following), following_client in zip(
                clients, keys, pairwise(plan.stages), clients[1:], strict=False
            )
        )
        specs = specs_of(plan, epoch, ask.step_tokens)
        ring = self._ring = await asyncio.to_thread(
            functools.partial(TcpRing.connect, tls=(clients[0].link_tls(), clients[-1].link_tls())),
            planned.data_port(None, plan.stages[0].worker),
            hello_to(specs[0], Role.UPSTREAM, loaded[0].element),
            planned.data_port(None, plan.stages[-1].worker),
            hello_to(specs[-1], Role.DOWNSTREAM, loaded[-1].element),
            ask.connect_timeout_s,
        )
        watched = [Watched(client, key) for client, key in zip(clients, keys, strict=True)]
        self._heartbeat = Heartbeat(epoch.head, watched, *tell)
        return Pipeline(planned, epoch, ring)

    async def drop(self) -> None:
        """Close it. Idempotent."""
        if self._heartbeat is not None:
            await self._heartbeat.close()
        if self._ring is not None:
            self._ring.close()
        self._heartbeat = self._ring = None
