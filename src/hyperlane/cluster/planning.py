"""A plan with what is there now: measures the workers where anything hangs on it, and lets the planner choose.

Where measuring fails, layers go in proportion to free memory. Knows no epoch and loads nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from hyperlane.cluster.machine import is_loopback
from hyperlane.cluster.pipelines.mending import is_mended
from hyperlane.cluster.placement import ProportionalPlanner, shares
from hyperlane.cluster.planner.curve import Curve
from hyperlane.cluster.planner.facts import HEAD, ClusterFacts, DeviceCost, Objective, PathFacts, pools_of
from hyperlane.cluster.planner.groups import dealt
from hyperlane.cluster.planner.partitioner import KnapsackPartitioner
from hyperlane.cluster.planner.survey import Survey
from hyperlane.cluster.precisions import Wire, with_precisions
from hyperlane.cluster.profile.measured import Measured, Measures, Node, Route, dialled
from hyperlane.cluster.report import Progress, Report, silent
from hyperlane.cluster.supply import reached_from
from hyperlane.cluster.wanted import Wanted
from hyperlane.core import Address, Plan, SpareStatus, WorkerFacts
from hyperlane.errors import (
    ClusterError,
    ConfigError,
    DoesNotFit,
    HyperlaneError,
    NotTrusted,
    VersionMismatch,
    WorkerBusy,
    WorkerUnreachable,
)

log = logging.getLogger(__name__)

LOAD_BYTES_PER_S = 100e6
"""How fast a worker is taken to obtain and load weights, when it is asked whether a new plan pays."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user wants of a plan.

    `everyone`: no worker is left out that can hold a layer; else the best subset is taken. `layers`: a placement by
    hand, `NODE=a:b` for each stage; empty: the planner's. `wire`: the precision of links.
    """

    objective: Objective = Objective.LATENCY
    everyone: bool = False
    layers: tuple[str, ...] = ()
    wire: Wire = Wire.AUTO


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what it was made from; `measured` None: nothing was measured, and the plan predicts nothing."""

    plan: Plan
    measured: Measured | None = None
    routes: tuple[Route, ...] = ()
    """Of the paths, where nothing else was measured."""

    def data_port(self, source: WorkerFacts | None, target: WorkerFacts) -> Address:
        """Where `source` (None: the head) dials the data port of `target`: on the best path that was measured."""
        routes = self.routes if self.measured is None else self.measured.routes
        best = dialled(routes, HEAD if source is None else source.name, target.name)
        if best is not None:
            return best
        return target.data if source is None else reached_from(source.control, target.data)


@dataclass(frozen=True, slots=True)
class Grounds:
    """What plans are made from: what was measured, or, where nothing was, the paths alone."""

    measured: Measured | None = None
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True)
class Outlook:
    """What could be planned. `plan` None: nothing fits. `survey` None: nothing could be measured.

    `spare`: the worker that is kept out of it, and what that would hold; None: none was asked for. `replicas`: the
    plans of several pipelines, where those were asked for; `plan` is the first one then.
    """

    plan: Plan | None
    survey: Survey | None = None
    spare: SpareStatus | None = None
    replicas: tuple[Plan, ...] = ()


class Planning:
    """Makes plans of one model, whenever it is asked: at the start, and again when workers come or go."""

    def __init__(self, wishes: Wishes, measures: Measures | None = None, report: Report = silent) -> None:
        """`measures` None: nothing is measured."""
        self._wishes = wishes
        self._measures = measures
        self._report = report
        self.is_held_up = False
        """The last measuring failed because a worker that was never measured runs stages."""
        self._partitioner = KnapsackPartitioner(wishes.objective, everyone=wishes.everyone)

    async def now(self, wanted: Wanted, nodes: Sequence[Node]) -> Planned:
        """The plan over these workers as they are now, in the event loop of their clients.

        One worker alone is not measured, as there is nothing to choose; unless layers were asked for.

        Raises:
            DoesNotFit: no plan fits; the message says what is missing and what would fit.
            ConfigError: the layers that were asked for are no placement on these workers.
            WorkerUnreachable, VersionMismatch, NotTrusted: of a worker.

        """
        return self.on(wanted, nodes, await self.grounds(wanted, nodes))

    async def grounds(self, wanted: Wanted, nodes: Sequence[Node]) -> Grounds:
        """What plans over these workers, or over some of them, can be made from. Raises as `now`, but DoesNotFit."""
        needed = len(nodes) > 1 or self._wishes.layers
        measured = await self._measured(wanted, nodes) if needed else None
        return Grounds(measured, await self._routes(nodes) if measured is None else ())

    def on(self, wanted: Wanted, nodes: Sequence[Node], grounds: Grounds) -> Planned:
        """The plan over these workers, which are among those of the grounds. Asks nobody; raises as `now`."""
        measured = grounds.measured
        if measured is None:
            return Planned(self._linked(self._unmeasured(wanted, nodes)), routes=grounds.routes)
        facts = measured.facts.only([node.facts.name for node in nodes])
        choice = self._partitioner.plan(facts, wanted.workload, self._wishes.layers)
        return Planned(self._linked(choice.plan, measured), measured)

    def several(self, wanted: Wanted, nodes: Sequence[Node], grounds: Grounds, count: int) -> tuple[Planned, ...]:
        """Plans for so many pipelines over different ones of these workers. Asks nobody.

        Raises:
            DoesNotFit: there are not so many; the message says how many there could be.
            ConfigError: layers were asked for by hand, which says nothing of several pipelines.

        """
        if self._wishes.layers:
            raise ConfigError("--layers places one pipeline: leave it out, or --replicas")
        measured = grounds.measured
        if measured is None:
            return tuple(Planned(self._linked(plan), routes=grounds.routes) for plan in _dealt(wanted, nodes, count))
        facts = measured.facts.only([node.facts.name for node in nodes])
        choices = self._partitioner.groups(facts, wanted.workload, count)
        return tuple(Planned(self._linked(choice.plan, measured), measured) for choice in choices)

    def forget(self, nodes: Sequence[Node]) -> None:
        """Let these workers be measured anew for the next plan."""
        if self._measures is not None:
            self._measures.forget([node.facts.name for node in nodes])

    async def outlook(self, wanted: Wanted, nodes: Sequence[Node]) -> Outlook:
        """Every candidate worth showing, with what it would do, and the plan of the winner. Raises as `now`.

        Where nothing fits the survey says what would.
        """
        measured = await self._measured(wanted, nodes) if nodes else None
        if measured is None:
            return Outlook(self._linked(self._unmeasured(wanted, nodes)))
        survey = self._partitioner.survey(measured.facts, wanted.workload, self._wishes.layers)
        if survey.winner is None:
            return Outlook(None, survey)
        choice = self._partitioner.choice(measured.facts, wanted.workload, survey.winner)
        return Outlook(self._linked(choice.plan, measured), survey)

    def _linked(self, plan: Plan, measured: Measured | None = None) -> Plan:
        """The plan with the precision of each link."""
        return with_precisions(plan, self._wishes.wire, measured.facts.paths if measured else ())

    async def better(self, wanted: Wanted, nodes: Sequence[Node], running: Plan) -> Planned | None:
        """A plan that is worth moving to from a running one; None: it goes on.

        Measured, it must pay (`planner.moving`). One with more workers is taken where everyone is to take part, and
        without measurements. One that was mended in a hurry gives way in any case. A worker that runs stages cannot be
        measured, if it never was: then `is_held_up`, and once nothing runs `now` can.
        `nodes`: each with the memory that is free when the running plan is unloaded. Raises as `now`.
        """
        if not nodes:
            return None
        free = self._measures is not None and not self._wishes.layers
        measured = await self._measured(wanted, nodes) if free and len(nodes) > 1 else None
        if measured is None:
            plan = self._linked(self._unmeasured(wanted, nodes))
            is_wider = len(plan.stages) > len(running.stages)
            wants_wider = self._wishes.everyone or bool(self._wishes.layers) or self._measures is None
            return Planned(plan) if is_mended(running) or (is_wider and wants_wider) else None
        rates = {node.facts.name: LOAD_BYTES_PER_S for node in nodes}
        replanning = self._partitioner.replan(running, measured.facts, wanted.workload, rates)
        log.info("another plan would have %s", replanning.verdict.why)
        better = Planned(self._linked(replanning.choice.plan, measured), measured)
        is_wider = self._wishes.everyone and len(better.plan.stages) > len(running.stages)
        return better if replanning.verdict.is_worth or is_wider or is_mended(running) else None

    def _unmeasured(self, wanted: Wanted, nodes: Sequence[Node]) -> Plan:
        workload, workers = wanted.workload, [node.facts for node in nodes]
        if workers and self._wishes.layers:
            # Costs decide nothing here; what they predict is not told.
            asked = self._partitioner.plan(_equal(workers), workload, self._wishes.layers).plan
            return replace(asked, prediction=None)
        planner = ProportionalPlanner()
        return planner.plan(workload.model, workers, workload.cost, workload.slots, workload.context)

    async def _routes(self, nodes: Sequence[Node]) -> tuple[Route, ...]:
        """The best of the paths to workers of other machines, as far as they can be measured."""
        if self._measures is None or all(is_loopback(node.facts.data.host) for node in nodes):
            return ()
        try:
            return await self._measures.routes(nodes, self._report)
        except ClusterError as error:
            log.warning("links go over the addresses that workers were found at: %s", error)
            return ()

    async def _measured(self, wanted: Wanted, nodes: Sequence[Node]) -> Measured | None:
        """None, and why, where measuring fails for another reason than that a worker is not there."""
        if self._measures is None:
            return None
        self.is_held_up = False
        try:
            return await self._measures.measure(nodes, wanted.shape, self._report)
        except (WorkerUnreachable, VersionMismatch, NotTrusted):
            raise
        except HyperlaneError as error:
            self.is_held_up = isinstance(error, WorkerBusy)
            if self.is_held_up:
                log.info("layers are placed in proportion to free memory until workers can be measured: %s", error)
                self._report(Progress("head", "placing layers by free memory until the workers can be measured"))
                return None
            log.warning("layers are placed in proportion to free memory, because measuring failed: %s", error)
            self._report(Progress("head", "placing layers by free memory: measuring failed"))
            return None


def _dealt(wanted: Wanted, nodes: Sequence[Node], count: int) -> list[Plan]:
    """Pipelines over workers of about the same memory each, where nothing was measured."""
    workers = [node.facts for node in nodes]
    workload, planner = wanted.workload, ProportionalPlanner()
    if count > len(workers):
        raise DoesNotFit(
            f"{count} replicas need at least {count} workers, not {len(workers)}: ask for fewer, or add some, on this "
            "machine with --local-workers"
        )
    # What workers of one machine have together is shared out among all of them, whichever pipeline they are of.
    alone = [
        replace(worker, memory_free=share, memory_pool="", pool_free=0)
        for worker, share in zip(workers, shares(workers), strict=True)
    ]
    groups = dealt([float(worker.memory_free) for worker in alone], count)
    try:
        plans = [
            planner.plan(
                workload.model,
                [alone[number] for number in sorted(group)],
                workload.cost,
                workload.slots,
                workload.context,
            )
            for group in groups
        ]
    except DoesNotFit as error:
        raise DoesNotFit(f"{count} replicas do not fit; of one of them:\n{error}") from error
    return [_on(plan, workers) for plan in plans]


def _on(plan: Plan, workers: Sequence[WorkerFacts]) -> Plan:
    """The same plan with what the workers said of themselves."""
    said = {worker.control: worker for worker in workers}
    stages = (replace(stage, worker=said[stage.worker.control]) for stage in plan.stages)
    return replace(plan, stages=tuple(stages))


class Names:
    """What workers are called in plans, each the same for good: machines may have one name between them."""

    def __init__(self) -> None:
        self._owners: dict[str, Address] = {}

    def given(self, worker: WorkerFacts) -> WorkerFacts:
        """The worker, with where it is in its name if another one was called so before."""
        owner = self._owners.setdefault(worker.name, worker.control)
        if owner == worker.control:
            return worker
        where = worker.control if owner.host == worker.control.host else worker.control.host
        return replace(worker, name=f"{worker.name}@{where}")


def _equal(workers: Sequence[WorkerFacts]) -> ClusterFacts:
    """Workers that all cost the same, each with a path to every other."""
    second = Curve.flat(1.0)
    ends = (HEAD, *(worker.name for worker in workers))
    return ClusterFacts(
        workers=tuple(workers),
        devices=tuple(
            DeviceCost(worker.name, second, second, second, second, 0.0, worker.memory_free) for worker in workers
        ),
        paths=tuple(PathFacts(source, target, 0.0, 1e9) for source, target in permutations(ends, 2)),
        pools=pools_of(workers),
    )
