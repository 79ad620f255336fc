"""Keeps a head supplied with a pipeline: after a loss, when a worker leaves, and when one comes that makes it faster.

Decides when; the controller does what. One task in the control plane's event loop, which nothing but `close` ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from hyperlane.cluster import rpc
from hyperlane.cluster.local import LocalWorkers
from hyperlane.cluster.pipelines.blame import Blame
from hyperlane.cluster.pipelines.breaker import Breakers
from hyperlane.cluster.pipelines.controller import Controller
from hyperlane.cluster.pipelines.facts import Ask, Attendance, Pipeline
from hyperlane.cluster.pipelines.mending import fits_beside, is_mended, same_places
from hyperlane.cluster.pipelines.replanning import Replanning
from hyperlane.cluster.pipelines.revival import Revival
from hyperlane.cluster.pipelines.served import Served
from hyperlane.cluster.planning import Planned, Planning
from hyperlane.cluster.profile.measured import Node
from hyperlane.cluster.worker_client import WorkerClient
from hyperlane.core import Address, HeadStatus, Plan
from hyperlane.errors import HyperlaneError

log = logging.getLogger(__name__)

SETTLE_S = 0.3
"""Workers come in groups; a plan is made when none has come for so long."""

LOOK_AGAIN_S = 10.0
"""Between two looks for workers that are away."""

REVIVAL_AFTER_S = 3.0
"""A worker that starts takes processor time: first requests go on, where they can without it."""

LOOK_SOON_S = 1.0
MENDED_FOR_S = 60.0
"""How long a plan that was mended is left as it is while requests run."""

LONGEST_PAUSE_S = 10.0
"""Between two tries to build a pipeline; a worker that comes ends the pause."""


@dataclass(frozen=True, slots=True)
class _Lost:
    """The pipeline of a generation failed."""

    generation: int
    cause: Exception


@dataclass(frozen=True, slots=True)
class _Changed:
    """Somebody came, or leaves."""


class Upkeep:
    """One for each head, from its first pipeline on. Everything but `lost` belongs to the event loop."""

    def __init__(
        self,
        controller: Controller,
        ask: Ask,
        planning: Planning,
        local: LocalWorkers,
        head: Served,
        *,
        replans: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`replans`: whether a running plan may be replaced by a better one."""
        self._controller = controller
        self._ask = ask
        self._planning = planning
        self._revival = Revival(local, self._replaced)
        self._clock = clock
        self._head = head
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[_Lost | _Changed] = asyncio.Queue()
        self._breakers = Breakers()
        self._blame = Blame(self._breakers, clock)
        self._replanning = Replanning(ask.wanted, planning, self._breakers, clock, replans=replans)
        self._generation = 0
        self._look_again_s: float | None = None
        self._since_s = clock()
        self._running: Pipeline | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> Pipeline:
        """The first pipeline. Raises as `Controller.start`."""
        self._running = await self._controller.start(self._ask, self._planning, self._verdict, self._leaves)
        return self._running

    async def watch(self) -> None:
        """From now on see to it that the head has a pipeline; the first one is attached."""
        self._task = asyncio.create_task(self._supervise())

    async def close(self) -> None:
        """Let things be as they are. Idempotent."""
        await self._revival.close()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    @property
    def plan(self) -> Plan:
        """The plan of the last pipeline; there must have been one."""
        assert self._running is not None
        return self._running.plan

    def lost(self, cause: Exception) -> None:
        """The head's pipeline failed. From any thread."""
        event = _Lost(self._generation, cause)
        with suppress(RuntimeError):  # the loop has ended: so does the head
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def offer(self, address: Address) -> None:
        """A worker came, or came back."""
        self._controller.crew.offer(address)
        self._events.put_nowait(_Changed())

    def offer_soon(self, address: Address) -> None:
        """As `offer`, from any thread."""
        self._loop.call_soon_threadsafe(self.offer, address)

    def complete(self, status: HeadStatus) -> HeadStatus:
        """A status with who is left out for a while, and why. From any thread."""
        return self._blame.complete(status)

    # --- events ----------------------------------------------------------------------------------------------

    def _verdict(self, error: HyperlaneError) -> None:
        self._head.pause(error)

    def _leaves(self, client: WorkerClient) -> None:
        log.info("%s at %s is about to leave", client.name, client.address)
        self._events.put_nowait(_Changed())

    async def _supervise(self) -> None:
        """The supervisor: whatever goes wrong with one event, the next one is seen to."""
        while True:
            event = await self._next()
            try:
                if not isinstance(event, _Lost):
                    await self._settle()
                    await self._improve()
                elif event.generation == self._generation:
                    await self._recover(event.cause)
            except Exception as error:
                log.exception("the upkeep of the pipeline failed")
                await asyncio.sleep(LONGEST_PAUSE_S)
                if isinstance(event, _Lost) or not (self._running and self._controller.runs(self._running)):
                    self._events.put_nowait(_Lost(self._generation, error))

    async def _next(self) -> _Lost | _Changed:
        """The next event; it is time for one as well to look for workers that are away, and to try one again."""
        pauses = [self._breakers.next_half_open_s(self._clock()), self._look_again_s]
        with suppress(TimeoutError):
            async with asyncio.timeout(min((pause for pause in pauses if pause is not None), default=None)):
                return await self._events.get()
        return _Changed()

    async def _look(self) -> Attendance:
        seen = await self._controller.crew.look()
        self._look_again_s = LOOK_AGAIN_S if seen.missing else None
        return seen

    async def _settle(self) -> None:
        """Wait until nobody has come for a moment; a loss is not waited for."""
        while True:
            try:
                event = await asyncio.wait_for(self._events.get(), SETTLE_S)
            except TimeoutError:
                return
            if isinstance(event, _Lost):
                self._events.put_nowait(event)
                return

    # --- after a loss ----------------------------------------------------------------------------------------

    async def _recover(self, cause: Exception) -> None:
        """Build a pipeline of what is left, however long it takes; requests wait, or give up, at the head."""
        began_s = self._clock()
        lost, blamed = self._running, False
        rng = random.Random()
        pause_s = rpc.FIRST_PAUSE_S
        while True:
            seen = await self._look()
            missing = [address for address, _ in seen.missing]
            if not blamed and lost is not None:
                self._blame.for_loss(lost.plan, seen, cause)
            blamed = True
            try:
                await self._serve(await self._change(await self._replanning.after(lost, seen)))
            except HyperlaneError as error:
                log.warning("no pipeline yet: %s", error)
                self._blame.failed(self._controller.blamed, error)
                self._revival.begin(missing)
            else:
                self._revival.begin(missing, REVIVAL_AFTER_S)
                log.warning("requests go on after %.2f s: %s", self._clock() - began_s, cause)
                return
            await self._pause(pause_s * rng.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _change(self, planned: Planned) -> Pipeline:
        return await self._controller.change(self._ask, planned, self._verdict, self._leaves)

    async def _serve(self, pipeline: Pipeline) -> None:
        self._running, self._since_s = pipeline, self._clock()
        self._generation += 1
        self._head.attach(pipeline.ring, pipeline.plan, pipeline.epoch.counter)
        self._head.prove()

    async def _pause(self, seconds: float) -> None:
        """Wait, or until somebody comes. A loss that is told meanwhile is of no pipeline that runs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while isinstance(await self._events.get(), _Lost):
                    pass

    async def _replaced(self, old: Address, new: Address | None) -> None:
        await self._controller.crew.forget(old)
        if new is not None:
            self.offer(new)

    # --- for the better --------------------------------------------------------------------------------------

    async def _improve(self) -> None:
        """Replace the running plan if a worker of it leaves, or if another plan is better by enough."""
        running = self._running
        if running is None:
            return
        seen = await self._look()
        self._revival.begin([address for address, _ in seen.missing])
        planned = await self._replanning.without_leavers(running, seen)
        if planned is None and self._is_good_for_now(running):
            self._look_again_s = LOOK_SOON_S
            return
        planned = planned or await self._better(running, seen)
        if planned is None or same_places(planned.plan, running.plan):
            return
        log.info("another plan takes over: %s", _places(planned.plan))
        beside = fits_beside(planned.plan, running.plan, [one.node.facts for one in seen.present])
        try:
            if not beside:
                await self._let_go()
            pipeline = await self._controller.change(
                self._ask, planned, self._verdict, self._leaves, self._let_go if beside else None
            )
            await self._serve(pipeline)
        except HyperlaneError as error:
            self._blame.failed(self._controller.blamed, error)
            await self._after_failed_change(running, error)

    def _is_good_for_now(self, running: Pipeline) -> bool:
        """A plan that was mended serves those that are there to their end, if that is soon: to move costs a replay."""
        young = self._clock() - self._since_s < MENDED_FOR_S
        return is_mended(running.plan) and young and not self._head.idle()

    async def _better(self, running: Pipeline, seen: Attendance) -> Planned | None:
        """What would be planned now, if it is worth moving to."""
        planned = await self._replanning.better(running, seen)
        if planned is None and self._replanning.is_held_up:
            await self._measure_in_quiet(self._replanning.usable(seen))
        return planned

    async def _measure_in_quiet(self, nodes: Sequence[Node]) -> None:
        """Somebody was never measured, and cannot be beside stages: while nobody asks for anything they go."""
        self._look_again_s = LOOK_AGAIN_S
        if not self._head.idle():
            return
        log.info("nobody waits: workers are measured that never were")
        await self._let_go()
        try:
            await self._controller.clear()
            await self._serve(await self._change(await self._replanning.now(nodes)))
        except HyperlaneError as error:
            await self._recover(error)

    async def _let_go(self) -> None:
        self._generation += 1
        await asyncio.to_thread(self._head.pause)

    async def _after_failed_change(self, running: Pipeline, error: HyperlaneError) -> None:
        if self._controller.runs(running):
            log.warning("the running plan goes on: %s", error)
            await self._controller.give_up_what_is_new(running)
        else:
            await self._recover(error)


def _places(plan: Plan) -> str:
    return ", ".join(f"layers {stage.layers} on {stage.worker.name}" for stage in plan.stages)
