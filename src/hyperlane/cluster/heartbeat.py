"""Renews the leases of a pipeline's workers and notices when one is lost. Decides nothing about what then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from hyperlane.cluster.worker_client import WorkerClient
from hyperlane.core import HeadId
from hyperlane.errors import HyperlaneError, PipelineLost
from hyperlane.stage.orders import HostHealth, StageKey
from hyperlane.stage.stage import StageState

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
PATIENCE_S = 6.0
"""How long one heartbeat is tried; well below the lease, so that the head is the first to know."""

OnLost = Callable[[HyperlaneError], None]
"""Told once, from a thread that waits for it."""

OnLeaving = Callable[[WorkerClient], None]
"""Told in the event loop, once for each worker that takes no further stage and will go when it has none."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A worker and the stage that it should be running; None while it loads."""

    client: WorkerClient
    stage: StageKey | None


class Heartbeat:
    """One task for each worker, until `close` or the first loss."""

    def __init__(
        self, head: HeadId, workers: list[Watched], on_lost: OnLost, on_leaving: OnLeaving | None = None
    ) -> None:
        """Start beating; needs a running event loop."""
        self._head = head
        self._on_lost: OnLost | None = on_lost
        self._on_leaving = on_leaving
        self._tasks = [asyncio.create_task(self._beat(worker)) for worker in workers]

    async def close(self) -> None:
        """Stop. Idempotent."""
        self._on_lost = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _beat(self, worker: Watched) -> None:
        stays = True
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                health = await worker.client.health(self._head, PATIENCE_S)
            except HyperlaneError as error:
                await self._lost(error)
                return
            if health.draining and stays and self._on_leaving is not None:
                stays = False
                self._on_leaving(worker.client)
            fault = worker.stage and what_is_wrong(health, worker.stage)
            if fault:
                await self._lost(PipelineLost(f"{worker.client.name} at {worker.client.address}: {fault}"))
                return

    async def _lost(self, error: HyperlaneError) -> None:
        log.info("heartbeat: %s", error)
        told, self._on_lost = self._on_lost, None
        if told is not None:
            await asyncio.to_thread(told, error)


def what_is_wrong(health: HostHealth, key: StageKey) -> str:
    """What a worker's health says against a stage that should run; empty when nothing. Pure."""
    if not health.holds_lease:
        return "it no longer works for this head (its lease ran out, or it was restarted)"
    stage = dict(health.stages).get(key)
    if stage is None:
        return f"it has dropped {key}"
    if stage.state is not StageState.RUNNING:
        return f"{key} is {stage.state.value}{': ' + stage.fault if stage.fault else ''}"
    return ""
