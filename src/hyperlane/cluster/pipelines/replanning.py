"""Which plan comes next: after a loss, before a worker leaves, or because a better one is there. Changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from hyperlane.cluster.pipelines.breaker import Breakers
from hyperlane.cluster.pipelines.crew import with_own
from hyperlane.cluster.pipelines.facts import Attendance, Pipeline
from hyperlane.cluster.pipelines.mending import mended, same_places
from hyperlane.cluster.planning import Planned, Planning
from hyperlane.cluster.profile.measured import Node
from hyperlane.cluster.wanted import Wanted
from hyperlane.errors import DoesNotFit

log = logging.getLogger(__name__)


class Replanning:
    """Asks the planner, with those workers left out that failed too often."""

    def __init__(
        self, wanted: Wanted, planning: Planning, breakers: Breakers, clock: Callable[[], float], *, replans: bool
    ) -> None:
        """`replans`: whether a running plan may be replaced by a better one."""
        self._wanted = wanted
        self._planning = planning
        self._breakers = breakers
        self._clock = clock
        self._replans = replans

    @property
    def is_held_up(self) -> bool:
        """Whether somebody was never measured and cannot be beside stages."""
        return self._replans and self._planning.is_held_up

    async def now(self, nodes: Sequence[Node]) -> Planned:
        """A plan from nothing. Raises as `Planning.now`."""
        return await self._planning.now(self._wanted, nodes)

    async def after(self, lost: Pipeline | None, seen: Attendance) -> Planned:
        """The same stages where that goes, else a new plan; left out are those who failed too often, while it goes.

        Raises as `Planning.now`.
        """
        everyone = [with_own(one) for one in seen.present if not one.is_leaving]
        trusted = [node for node in everyone if self._breakers.is_trusted(node.facts.control, self._clock())]
        for nodes in (trusted, everyone):
            with suppress(DoesNotFit):
                return await self._planned_on(lost, nodes)
        return await self.now(everyone)

    async def without_leavers(self, running: Pipeline, seen: Attendance) -> Planned | None:
        """The running plan without those of its workers that are about to leave; None: nobody is, or nothing fits."""
        leaving = {one.node.facts.control for one in seen.present if one.is_leaving}
        if not leaving & {stage.worker.control for stage in running.plan.stages}:
            return None
        try:
            return await self._planned_on(running, [with_own(one) for one in seen.present if not one.is_leaving])
        except DoesNotFit as error:
            log.warning("a worker is about to leave, and nothing fits without it: %s", error)
            return None

    async def better(self, running: Pipeline, seen: Attendance) -> Planned | None:
        """What would be planned now, if it is worth moving to."""
        if not self._replans:
            return None
        with suppress(DoesNotFit):
            return await self._planning.better(self._wanted, self.usable(seen), running.plan)
        return None

    def usable(self, seen: Attendance) -> list[Node]:
        """Those that stay and are not left out."""
        now_s = self._clock()
        return [
            with_own(one)
            for one in seen.present
            if not one.is_leaving and not self._breakers.is_open(one.node.facts.control, now_s)
        ]

    async def _planned_on(self, running: Pipeline | None, nodes: Sequence[Node]) -> Planned:
        """The running plan on these workers, mended, or if that does not go a new one."""
        if running is not None:
            plan = mended(running.plan, [node.facts for node in nodes])
            if plan is not None:
                # What was predicted was for other workers.
                moved = not same_places(plan, running.plan)
                return replace(running.planned, plan=replace(plan, prediction=None) if moved else plan)
        return await self.now(nodes)
