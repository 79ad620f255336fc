"""The composition root of a head: configuration → running objects, and their orderly end. Every part is wired here.

Decides nothing by itself; knows which class plays which role. `working` is that of a worker.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self

from hyperlane.cluster import machine
from hyperlane.cluster.background import BackgroundLoop
from hyperlane.cluster.cost import stage_cost
from hyperlane.cluster.devices.own import own_devices, own_threads
from hyperlane.cluster.discovery.around import Surroundings
from hyperlane.cluster.discovery.finding import Lookout
from hyperlane.cluster.discovery.machine_hash import machine_hash
from hyperlane.cluster.engine_room import EngineRoom
from hyperlane.cluster.identity import HeadIdentity
from hyperlane.cluster.local import LocalWorkerOptions, LocalWorkers
from hyperlane.cluster.pipelines.arranging import Arranging
from hyperlane.cluster.pipelines.breaker import Breakers
from hyperlane.cluster.pipelines.claims import Claims
from hyperlane.cluster.pipelines.company import Company
from hyperlane.cluster.pipelines.controller import Controller
from hyperlane.cluster.pipelines.crew import Crew
from hyperlane.cluster.pipelines.facts import Ask
from hyperlane.cluster.pipelines.fleet import Fleet
from hyperlane.cluster.pipelines.loader import StageLoader
from hyperlane.cluster.pipelines.replanning import Replanning
from hyperlane.cluster.pipelines.standby import SPARE, Standby
from hyperlane.cluster.pipelines.upkeep import Upkeep
from hyperlane.cluster.planner.facts import Objective
from hyperlane.cluster.planning import Outlook, Planning, Wishes
from hyperlane.cluster.precisions import Wire
from hyperlane.cluster.profile.cluster import ClusterProfiler
from hyperlane.cluster.profile.pairs import head_end
from hyperlane.cluster.report import Progress, Report, silent
from hyperlane.cluster.trust import opening
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.cluster.trust.opening import OpenDoor
from hyperlane.cluster.wanted import Use, context_of, wanted
from hyperlane.config import DiscoveryConfig, ServeConfig, usable_cores
from hyperlane.core import Address, HeadStatus, Plan
from hyperlane.head.head import Head
from hyperlane.head.options import HeadOptions
from hyperlane.head.prefixes import Reuse
from hyperlane.head.replicas import ReplicaSet
from hyperlane.head.service import HeadService
from hyperlane.models.chat_template import chat_template_of
from hyperlane.models.digests import DigestCache
from hyperlane.models.opened import open_asked
from hyperlane.models.resolve import Library
from hyperlane.models.source import facts_of, tokenizer_of
from hyperlane.working import lend, run_worker

__all__ = ["EngineRoom", "Progress", "Report", "Serving", "lend", "make_plan", "run_worker", "start_serving"]

log = logging.getLogger(__name__)


class Serving:
    """A model that is loaded and ready, until `close`."""

    def __init__(self, service: HeadService, fleet: Fleet, parts: ExitStack) -> None:
        """`parts` ends everything, the last started first."""
        self.service = service
        self._fleet = fleet
        self._parts = parts

    @property
    def plan(self) -> Plan:
        """The plan of the last pipeline; of the first replica's, where there are several."""
        return self._fleet.plans[0]

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan of each replica."""
        return self._fleet.plans

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def offer(self, worker: Address) -> None:
        """A worker that may be used from now on. What is found by itself needs no offer."""
        self._fleet.offer_soon(worker)

    def close(self) -> None:
        """End requests, release the workers, end those of this machine. Idempotent."""
        self._parts.close()


def start_serving(
    config: ServeConfig,
    report: Report = silent,
    worker_command: tuple[str, ...] | None = None,
    looking: Looking | None = None,
) -> Serving:
    """Bring a model up: workers, plan, stages, ring, and a real token through all of it.

    Synchronous: the control plane runs in an event loop of its own thread, the head in another. After an error, or
    Ctrl-C, nothing that was started here is left.

    Args:
        config: what to serve.
        report: told how it goes, from any thread.
        worker_command: starts local workers in place of `python -m hyperlane worker`.
        looking: how workers are looked for when none is named; None: not at all.

    Raises:
        UsageError: an unknown model or impossible setting.
        ModelError: the file cannot be used.
        ClusterError: a worker cannot be reached, or the model does not fit.

    """
    with ExitStack() as parts:
        cluster = _Cluster(config, report, parts, worker_command, looking)
        tokenizer = tokenizer_of(cluster.model)
        template = chat_template_of(tokenizer, config.chat_template)
        options = HeadOptions(
            max_step_tokens=config.step_tokens,
            prompt_chunk=config.prompt_chunk,
            queue=config.queue,
            frames_in_flight=config.frames_in_flight,
            prefix_cache=Reuse(config.prefix_cache),
            recovery_timeout_s=config.recovery_timeout_s,
        )
        ids = itertools.count()
        heads = [
            Head(cluster.facts, tokenizer, options, on_lost=functools.partial(cluster.tell_loss, number), ids=ids)
            for number in range(config.replicas)
        ]
        service = HeadService(ReplicaSet(heads), tokenizer, template, cluster.complete)
        fleet = cluster.fleet(heads)
        parts.callback(service.close)
        parts.callback(lambda: cluster.loop.run(fleet.close()))
        pipelines = cluster.loop.run(fleet.start())
        report(Progress("head", "sending a token through every stage"))
        for head, pipeline in zip(heads, pipelines, strict=True):
            head.switch(pipeline.ring, pipeline.plan, pipeline.epoch.counter)
        cluster.loop.run(fleet.watch())
        return Serving(service, fleet, parts.pop_all())


def make_plan(config: ServeConfig, report: Report = silent, looking: Looking | None = None) -> Outlook:
    """What could be planned now, and what each plan would do. Starts local workers to be asked, and loads nothing.

    Raises as `start_serving`.
    """
    with ExitStack() as parts:
        cluster = _Cluster(config, report, parts, None, looking, plan_only=True)
        return cluster.loop.run(cluster.outlook(cluster.crew()))


@dataclass(frozen=True, slots=True)
class Looking:
    """How workers are looked for. `door`: the head's, if it has one that is open."""

    config: DiscoveryConfig
    door: OpenDoor | None = None


class _Cluster:
    """The parts of a head below its requests; each is ended by `parts`."""

    def __init__(
        self,
        config: ServeConfig,
        report: Report,
        parts: ExitStack,
        worker_command: tuple[str, ...] | None,
        looking: Looking | None,
        *,
        plan_only: bool = False,
    ) -> None:
        """`plan_only`: nothing will be loaded, so that the model's weights need not be here."""
        self._config = config
        self._looking = looking
        self._around: Surroundings | None = None
        self._fleet: Fleet | None = None
        self._profiler: ClusterProfiler | None = None
        self._report = report
        self._parts = parts
        self._trust = opening.head_trust(config.paths)
        digests = DigestCache(config.paths.digests)
        library = Library(config.paths.models, config.offline, digests)
        whole = not (plan_only or config.workers or self._expected())
        self._opened = open_asked(config.model, library, digests, _download_report(report), whole=whole)
        self.model = self._opened.model
        parts.callback(self._opened.close)
        self._local = LocalWorkers(_local_options(config, worker_command, self._trust, reached=self._expected() > 0))
        parts.callback(self._local.close)
        report(Progress("head", f"reading {self._opened.name}"))
        self.facts = replace(facts_of(self.model, config.weights), name=self._opened.name)
        self._identity = HeadIdentity(config.paths.state / "identity")
        parts.callback(self._identity.close)
        self.loop = BackgroundLoop("control-plane")
        parts.callback(self.loop.close)

    def ask(self) -> Ask:
        """What is to run."""
        config, context = self._config, context_of(self._config.context, self.facts)
        cost = stage_cost(self.facts, self.model, config.slots, context, config.step_tokens)
        use = Use(config.slots, context, config.prompt_chunk, config.frames_in_flight, Wire(config.wire).counted)
        return Ask(
            wanted=wanted(self.facts, self.model, cost, use),
            file=self._opened.path,
            places=self.model,
            step_tokens=config.step_tokens,
            connect_timeout_s=config.connect_timeout_s,
            load_timeout_s=config.load_timeout_s,
        )

    def crew(self) -> Crew:
        """Waits for the local workers, then knows all."""
        if self._local.count:
            self._report(Progress("head", "starting local workers"))
        found = self._look()
        # Those on loopback first: each stage dials the next one, and nobody else could dial them.
        others = sorted(self._config.workers, key=lambda address: not machine.is_loopback(address.host))
        addresses = (*self._local.addresses(), *others, *found)
        crew = self.loop.run(self._make_crew(addresses))
        self._parts.callback(lambda: self.loop.run(crew.close()))
        return crew

    def planning(self) -> Planning:
        """How plans are made here; once the local workers are there."""
        config = self._config
        layers = self._local.named(config.layers)
        wishes = Wishes(Objective(config.optimize), config.uses_all, layers, Wire(config.wire))
        here, again = machine_hash(opening.machine_of(config.paths)), config.measure == "again"
        ends = head_end(here, machine.host_id(here))
        self._profiler = ClusterProfiler(self._identity.head, ends, again=again) if config.measure != "never" else None
        return Planning(wishes, self._profiler, self._report)

    async def outlook(self, crew: Crew) -> Outlook:
        """What could be planned now."""
        ask = self.ask()
        return await self._arranging(ask, self.planning()).outlook(await crew.nodes(ask.connect_timeout_s))

    def fleet(self, heads: Sequence[Head]) -> Fleet:
        """A pipeline for each head; `start` brings them up."""
        fleet = self._fleet = self.loop.run(self._make_fleet(self.crew(), heads))
        self._parts.callback(lambda: self.loop.run(fleet.release()))
        if self._around is not None:
            self._around.offer_to(fleet.offer)
            self._parts.callback(self._around.close)  # before the crew that it offers to
        return fleet

    def complete(self, status: HeadStatus) -> HeadStatus:
        """A status with what is around, and who is left out."""
        status = self._around.complete(status) if self._around is not None else status
        status = self._profiler.complete(status) if self._profiler is not None else status
        return self._fleet.complete(status) if self._fleet is not None else status

    def _expected(self) -> int:
        """How many nodes of this cluster may be found; none when workers are named, or nobody looks."""
        config = self._config
        if self._looking is None or self._trust is None or config.names_workers:
            return 0
        members = sum(member.removed_at is None for member in self._trust.members.all())
        return max(members, len(self._looking.config.addresses))

    def _look(self) -> tuple[Address, ...]:
        """Where workers of this cluster are now; later ones are offered to the next plan."""
        looking, expected = self._looking, self._expected()
        if looking is None or self._trust is None or not (expected or looking.door):
            return ()
        lookout = Lookout(looking.config, self._config.paths, self._trust, looking.door)
        self._around = Surroundings(self.loop, lookout)
        self._parts.callback(self._around.close)
        if not expected:
            return ()
        self._report(Progress("head", "looking for workers"))
        return self._around.wait(expected, looking.config.wait_s)

    async def _make_crew(self, addresses: tuple[Address, ...]) -> Crew:
        return Crew(addresses, self._identity.head, why_lost=self._local.obituary, trust=self._trust)

    async def _make_fleet(self, crew: Crew, heads: Sequence[Head]) -> Fleet:
        config, ask, planning, logs = self._config, self.ask(), self.planning(), self._config.paths.state / "logs"
        company = Company(Claims(), Breakers())
        if config.spare:
            company.standby = Standby(crew, ask, StageLoader(crew, logs, silent, SPARE), self._identity, company)
        fleet = Fleet(crew, company, self._local, self._arranging(ask, planning), ask.connect_timeout_s)
        upkeeps = []
        for number, head in enumerate(heads):
            owner = f"pipeline {number}"
            controller = Controller(crew, ask, self._identity, StageLoader(crew, logs, self._report, owner))
            replanning = Replanning(ask.wanted, planning, company, owner=owner, replans=config.replan)
            upkeeps.append(Upkeep(controller, replanning, company, fleet.revival, head, owner=owner))
        fleet.of(upkeeps)
        return fleet

    def _arranging(self, ask: Ask, planning: Planning) -> Arranging:
        config = self._config
        return Arranging(ask.wanted, planning, Objective(config.optimize), spare=config.spare, replicas=config.replicas)

    def tell_loss(self, number: int, cause: Exception) -> None:
        if self._fleet is not None:
            self._fleet.lost(number, cause)
        # How workers ended may take a moment to be seen; the head's thread has the next pipeline to wait for.
        threading.Thread(target=self._log_loss, args=(cause,), name="obituary", daemon=True).start()

    def _log_loss(self, cause: Exception) -> None:
        log.error("\n".join(filter(None, (f"the pipeline was lost: {cause}", self._local.obituary()))))


def _local_options(
    config: ServeConfig, command: tuple[str, ...] | None, trust: HeadTrust | None, *, reached: bool
) -> list[LocalWorkerOptions]:
    # Workers of other machines must reach those of this one, and then only encrypted.
    reached = reached or any(not machine.is_loopback(address.host) for address in config.workers)
    credentials = trust.local_worker() if trust is not None and reached else None
    places = own_devices(config)
    options = [
        LocalWorkerOptions(threads, device, config.memory, config.paths, credentials)
        for device, threads in zip(places, own_threads(config, places, usable_cores()), strict=True)
    ]
    return options if command is None else [replace(one, command=command) for one in options]


def _download_report(report: Report) -> Callable[[int, int], None]:
    return lambda done, total: report(Progress("head", "downloading the model", done, total))
