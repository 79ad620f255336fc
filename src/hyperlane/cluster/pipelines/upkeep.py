"""Keeps a head supplied with one pipeline: after a loss, when a worker leaves, and when one comes that makes it faster.

Decides when; the controller does what. One task in the control plane's event loop, which nothing but `close` ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from hyperlane.cluster import rpc
from hyperlane.cluster.pipelines import doubt
from hyperlane.cluster.pipelines.blame import Blame
from hyperlane.cluster.pipelines.company import Company
from hyperlane.cluster.pipelines.controller import Controller
from hyperlane.cluster.pipelines.doubt import Doubt
from hyperlane.cluster.pipelines.facts import Attendance, Pipeline
from hyperlane.cluster.pipelines.mending import fits_beside, is_mended, same_places
from hyperlane.cluster.pipelines.replanning import Replanning
from hyperlane.cluster.pipelines.revival import Revival
from hyperlane.cluster.pipelines.served import Served
from hyperlane.cluster.planning import Planned
from hyperlane.cluster.profile.measured import Node
from hyperlane.cluster.worker_client import WorkerClient
from hyperlane.core import Address, Plan
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

LONGEST_TRY_PAUSE_S = 2.0
"""Between two tries to build a pipeline, while requests wait; a worker that is found ends the pause."""

LONGEST_PAUSE_S = 10.0
"""After a failure that nobody foresaw."""


@dataclass(frozen=True, slots=True)
class _Lost:
    """The pipeline of a generation failed."""

    generation: int
    cause: Exception


@dataclass(frozen=True, slots=True)
class _Changed:
    """Somebody came, or leaves."""


@dataclass(frozen=True, slots=True)
class _Doubted:
    """The running plan has long done other than it was predicted."""


class Upkeep:
    """One for each pipeline, from its first ring on. Everything but `lost` belongs to the event loop."""

    def __init__(
        self,
        controller: Controller,
        replanning: Replanning,
        company: Company,
        revival: Revival,
        head: Served,
        *,
        owner: str = "",
    ) -> None:
        """`owner`: what claims and holdings know this pipeline by."""
        self._controller = controller
        self._replanning = replanning
        self._company = company
        self._claims = company.claims
        self._revival = revival
        self._clock = company.clock
        self._head = head
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[_Lost | _Changed] = asyncio.Queue()
        self._doubt, self._next_doubt_s = Doubt(), self._clock() + doubt.LOOK_EVERY_S
        self._blame = Blame(company.breakers, company.clock)
        self._generation = 0
        self._look_again_s: float | None = None
        self._since_s = self._clock()
        self._running: Pipeline | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, planned: Planned) -> Pipeline:
        """The first ring. Raises as `Controller.change`."""
        self._claims.take(self._owner, planned.plan)
        self._running = await self._change(planned)
        return self._running

    async def watch(self) -> None:
        """From now on see to it that the head has a pipeline; the first one is attached."""
        self._task = asyncio.create_task(self._supervise())

    async def close(self) -> None:
        """Let things be as they are. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def release(self) -> None:
        """Close the ring. Idempotent."""
        await self._controller.close()

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

    def changed(self) -> None:
        """A worker came, or came back, or the spare went."""
        self._events.put_nowait(_Changed())

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
                if isinstance(event, _Doubted):
                    await self._measure_again()
                elif not isinstance(event, _Lost):
                    await self._settle()
                    await self._improve()
                elif event.generation == self._generation:
                    await self._recover(event.cause)
            except Exception as error:
                log.exception("the upkeep of the pipeline failed")
                await asyncio.sleep(LONGEST_PAUSE_S)
                if isinstance(event, _Lost) or not (self._running and self._controller.runs(self._running)):
                    self._events.put_nowait(_Lost(self._generation, error))

    async def _next(self) -> _Lost | _Changed | _Doubted:
        """The next event; it is time for one as well to look for workers that are away, and to try one again."""
        while True:
            pauses = [self._company.breakers.next_half_open_s(self._clock()), self._look_again_s]
            pause_s = min((pause for pause in pauses if pause is not None), default=float("inf"))
            doubt_in_s = max(0.0, self._next_doubt_s - self._clock())
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause_s, doubt_in_s)):
                    return await self._events.get()
            if pause_s <= doubt_in_s:
                return _Changed()
            if self._doubts():
                return _Doubted()

    def _doubts(self) -> bool:
        """A look at what the running plan does; whether to measure again now."""
        self._next_doubt_s = self._clock() + doubt.LOOK_EVERY_S
        if self._running is None or not self._replanning.replans:
            return False
        self._doubt = self._doubt.seen(self._running.plan.prediction, *self._head.done())
        return self._doubt.is_due(self._clock()) and self._head.idle()

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
        if self._company.standby is not None:
            await self._company.standby.stop()
        while True:
            missing: list[Address] = []
            try:
                async with self._claims.planning:
                    seen = await self._look()
                    missing = [address for address, _ in seen.missing]
                    if not blamed and lost is not None and self._blame.for_loss(lost.plan, seen, cause):
                        self._head.excuse()
                    blamed = True
                    planned = await self._planned_after(lost, seen)
                await self._serve(await self._change(planned))
            except HyperlaneError as error:
                log.warning("no pipeline yet: %s", error)
                self._blame.failed(self._controller.blamed, error)
                self._revival.begin(missing)
            else:
                self._revival.begin(missing, REVIVAL_AFTER_S)
                log.warning("requests go on after %.2f s: %s", self._clock() - began_s, cause)
                await self._after_a_change()
                return
            await self._pause(pause_s * rng.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_TRY_PAUSE_S)

    async def _planned_after(self, lost: Pipeline | None, seen: Attendance) -> Planned:
        """The next plan, with its workers claimed."""
        try:
            planned = await self._replanning.after(lost, seen)
        except HyperlaneError:
            self._claims.down(self._owner)
            raise
        self._claims.take(self._owner, planned.plan)
        return planned

    async def _change(self, planned: Planned) -> Pipeline:
        return await self._controller.change(planned, self._verdict, self._leaves)

    async def _serve(self, pipeline: Pipeline) -> None:
        self._running, self._since_s = pipeline, self._clock()
        self._generation += 1
        self._head.attach(pipeline.ring, pipeline.plan, pipeline.epoch.counter, pipeline.kept)
        self._head.prove()
        self._claims.take(self._owner, pipeline.plan)

    async def _after_a_change(self) -> None:
        """What no request waits for: drop what is not needed, and let the spare hold what is."""
        await self._controller.tidy()
        if self._company.standby is not None:
            await self._company.standby.tend()
            if self._company.standby.worker is None:
                self.changed()

    async def _pause(self, seconds: float) -> None:
        """Wait, or until somebody comes. A loss that is told meanwhile is of no pipeline that runs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while isinstance(await self._events.get(), _Lost):
                    pass

    # --- for the better --------------------------------------------------------------------------------------

    async def _improve(self) -> None:
        """Replace the running plan if a worker of it leaves, or if another plan is better by enough."""
        running = self._running
        if running is None:
            return
        async with self._claims.planning:
            seen = await self._look()
            self._revival.begin([address for address, _ in seen.missing])
            await self._see_to_the_spare(seen)
            planned = await self._replanning.without_leavers(running, seen)
            if planned is None and self._is_good_for_now(running):
                self._look_again_s = LOOK_SOON_S
                return
            planned = planned or await self._replanning.better(running, seen)
            held_up = planned is None and self._replanning.is_held_up
            if planned is not None and not same_places(planned.plan, running.plan):
                self._claims.take(self._owner, running.plan, planned.plan)
        if held_up:
            await self._measure_in_quiet(self._replanning.usable(seen))
        elif planned is not None and not same_places(planned.plan, running.plan):
            await self._move(running, planned, seen)

    async def _move(self, running: Pipeline, planned: Planned, seen: Attendance) -> None:
        log.info("another plan takes over: %s", _places(planned.plan))
        beside = fits_beside(planned.plan, running.plan, [one.node.facts for one in seen.present])
        try:
            if not beside:
                await self._let_go()
            pipeline = await self._controller.change(
                planned, self._verdict, self._leaves, self._let_go if beside else None
            )
            await self._serve(pipeline)
            await self._after_a_change()
        except HyperlaneError as error:
            self._blame.failed(self._controller.blamed, error)
            await self._after_failed_change(running, error)

    async def _see_to_the_spare(self, seen: Attendance) -> None:
        """Where there is none, one of those that are in no plan becomes it."""
        standby = self._company.standby
        if standby is not None and standby.worker is None:
            standby.choose([node.facts for node in self._replanning.usable(seen)])
            await standby.tend()

    def _is_good_for_now(self, running: Pipeline) -> bool:
        """A plan that was mended serves those that are there to their end, if that is soon: to move costs a replay."""
        young = self._clock() - self._since_s < MENDED_FOR_S
        return is_mended(running.plan) and young and not self._head.idle()

    async def _measure_in_quiet(self, nodes: Sequence[Node]) -> None:
        """Somebody was never measured, and cannot be beside stages: while nobody asks for anything they go."""
        self._look_again_s = LOOK_AGAIN_S
        if not self._head.idle():
            return
        log.info("nobody waits: workers are measured")
        await self._let_go()
        try:
            await self._controller.clear()
            await self._serve(await self._change(await self._replanning.now(nodes)))
        except HyperlaneError as error:
            await self._recover(error)

    async def _measure_again(self) -> None:
        """What was measured is believed no more. A request that comes meanwhile waits, as after a loss."""
        async with self._claims.planning:
            nodes = self._replanning.usable(await self._look())
        log.info("the plan has long done other than it was predicted: its workers are measured again")
        self._replanning.forget(nodes)
        self._doubt = self._doubt.settled(self._clock())
        await self._measure_in_quiet(nodes)

    async def _let_go(self) -> None:
        self._generation += 1
        await asyncio.to_thread(self._head.pause)

    async def _after_failed_change(self, running: Pipeline, error: HyperlaneError) -> None:
        if self._controller.runs(running):
            log.warning("the running plan goes on: %s", error)
            self._claims.take(self._owner, running.plan)
            await self._controller.give_up_what_is_new(running)
        else:
            await self._recover(error)


def _places(plan: Plan) -> str:
    return ", ".join(f"layers {stage.layers} on {stage.worker.name}" for stage in plan.stages)
