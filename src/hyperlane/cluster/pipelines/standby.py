"""The spare: a worker outside all plans that holds their stages loaded, so that one of them goes on there at once.

Loads in the background what `planner.spare` says. Knows no request; lives in the control plane's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from hyperlane.cluster.heartbeat import Heartbeat, Watched
from hyperlane.cluster.identity import HeadIdentity
from hyperlane.cluster.pipelines.company import Company
from hyperlane.cluster.pipelines.crew import PROBE_S, Crew
from hyperlane.cluster.pipelines.facts import Ask
from hyperlane.cluster.pipelines.loader import StageLoader
from hyperlane.cluster.pipelines.mending import Ready
from hyperlane.cluster.planner.spare import held_by, spare_of
from hyperlane.cluster.stage_orders import specs_of
from hyperlane.core import Address, Epoch, Plan, SpareStatus, StageSpec, WorkerFacts
from hyperlane.errors import HyperlaneError
from hyperlane.stage.terms import same_engine

log = logging.getLogger(__name__)

SPARE = "spare"
"""What holdings know the spare's stages by."""

AGAIN_S = 10.0
"""After a load that failed."""


class Standby:
    """At most one spare at a time. `worker`: its control address, None while there is none."""

    def __init__(self, crew: Crew, ask: Ask, loader: StageLoader, identity: HeadIdentity, company: Company) -> None:
        """`loader`: one that is nobody else's."""
        self.worker: Address | None = None
        self.on_gone: Callable[[], None] = lambda: None
        """Called when the spare is lost or about to leave."""
        self._crew = crew
        self._ask = ask
        self._loader = loader
        self._identity = identity
        self._claims = company.claims
        self._failures = company.failures
        self._facts: WorkerFacts | None = None
        self._heartbeat: Heartbeat | None = None
        self._task: asyncio.Task[None] | None = None
        self._guard = asyncio.Lock()
        self._status = SpareStatus("none", reason="no worker was left")

    # --- who it is -------------------------------------------------------------------------------------------

    def appoint(self, facts: WorkerFacts) -> None:
        """This worker is the spare from now on; `tend` makes it hold something."""
        self.worker, self._facts = facts.control, facts
        self._status = SpareStatus("loading", facts.name, facts.control)

    def choose(self, workers: Sequence[WorkerFacts]) -> None:
        """Appoint one of these, if there is no spare and one of them can be."""
        found = spare_of(self._claims.plans(), workers) if self.worker is None else None
        if found is not None:
            self.appoint(found)

    # --- what it holds ---------------------------------------------------------------------------------------

    def ready(self, plan: Plan) -> Ready:
        """The stages of a plan that the spare holds."""
        if self.worker is None or self._facts is None:
            return ()
        specs = self._specs(plan, self._facts)
        return {(self.worker, spec.index) for spec in specs if self._crew.holdings.has_engine(self.worker, spec)}

    async def tend(self) -> None:
        """See to it that the spare holds what it should, in the background; after every change of a plan."""
        async with self._guard:
            await self._stop()
            if self.worker is not None and self._claims.is_used(self.worker):
                self.worker = None
                self._status = SpareStatus("none", reason="it took over a stage, and no other worker is left")
            if self.worker is not None and self.worker not in self._crew:
                self.worker = None
                self._status = SpareStatus("none", reason="the spare was lost")
            held = self._crew.holdings.besides((), self._loader.owner)
            await self._crew.drop([place for place in held if place[0] != self.worker])
            if self.worker is not None:
                watched = [Watched(self._crew[self.worker], None)]
                self._heartbeat = Heartbeat(self._crew.head, watched, self._lost, lambda _: self._leaves())
                self._task = asyncio.create_task(self._fill(self.worker))

    async def stop(self) -> None:
        """Load nothing; what is there stays. Idempotent."""
        async with self._guard:
            await self._stop()

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._heartbeat is not None:
            await self._heartbeat.close()
            self._heartbeat = None

    def status(self) -> SpareStatus:
        """What is to be said of it. From any thread."""
        return self._status

    async def _fill(self, worker: Address) -> None:
        """The supervisor of the loads: they are tried again until they succeed."""
        while True:
            try:
                await self._load_missing(worker)
            except HyperlaneError as error:
                log.warning("the spare at %s is not ready: %s", worker, error)
                self._status = replace(self._status, state="failed", reason=str(error).splitlines()[0])
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def _load_missing(self, worker: Address) -> None:
        described = await self._crew[worker].describe(timeout_s=PROBE_S)
        facts = self._facts = self._crew.named(described.facts)
        plans, holdings = self._claims.plans(), self._crew.holdings
        wanted = held_by(plans, facts.memory_free + holdings.bytes_of(worker), self._failures)
        specs = [self._specs(plans[held.plan], facts)[held.stage.index] for held in wanted]
        unneeded = [
            (worker, key)
            for key, order in holdings.of(worker).items()
            if not any(same_engine(order.spec, spec) for spec in specs)
        ]
        await self._crew.drop(unneeded)
        stages = sum(len(plan.stages) for plan in plans)
        self._tell(facts, specs, stages)
        for held, spec in zip(wanted, specs, strict=True):
            if not holdings.has_engine(worker, spec):
                fresh = replace(spec, epoch=self._identity.next_epoch())
                order = self._loader.order(worker, fresh, held.stage)
                log.info("the spare at %s loads layers %s", worker, spec.layers)
                await self._loader.load(self._ask, [(worker, order)], [worker])
                self._tell(facts, specs, stages)

    def _specs(self, plan: Plan, facts: WorkerFacts) -> list[StageSpec]:
        """What the stages of a plan would be on the spare."""
        stages = tuple(replace(stage, worker=facts) for stage in plan.stages)
        return specs_of(replace(plan, stages=stages), Epoch(self._crew.head, 0), self._ask.step_tokens)

    def _tell(self, facts: WorkerFacts, specs: list[StageSpec], stages: int) -> None:
        there = [spec for spec in specs if self._crew.holdings.has_engine(facts.control, spec)]
        state = "ready" if len(there) == len(specs) else "loading"
        reason = ""
        if len(specs) < stages:
            reason = f"its memory holds {len(specs)} of {stages} stages" if specs else "its memory holds no stage"
        self._status = SpareStatus(
            state if specs else "failed", facts.name, facts.control, tuple(str(s.layers) for s in there), stages, reason
        )

    # --- what becomes of it ----------------------------------------------------------------------------------

    def _lost(self, error: HyperlaneError) -> None:
        """From a thread."""
        log.warning("the spare is lost: %s", error)
        self._status = SpareStatus("none", reason=f"the spare was lost: {str(error).splitlines()[0]}")
        self.worker = None
        self.on_gone()

    def _leaves(self) -> None:
        log.info("the spare is about to leave")
        self.worker = None
        self._status = SpareStatus("none", reason="the spare leaves")
        self.on_gone()
