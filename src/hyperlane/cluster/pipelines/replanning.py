"""Which plan comes next: after a loss, before a worker leaves, or because a better one is there. Changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from hyperlane.cluster.pipelines.company import Company
from hyperlane.cluster.pipelines.crew import with_own
from hyperlane.cluster.pipelines.facts import Attendance, Pipeline
from hyperlane.cluster.pipelines.mending import mended, same_places
from hyperlane.cluster.planning import Planned, Planning
from hyperlane.cluster.profile.measured import Node
from hyperlane.cluster.wanted import Wanted
from hyperlane.errors import DoesNotFit

log = logging.getLogger(__name__)


class Replanning:
    """Asks the planner for one pipeline, with the workers that are in no other's plan.

    Those that failed too often are left out, and for what can wait the spare is.
    """

    def __init__(
        self, wanted: Wanted, planning: Planning, company: Company, *, owner: str = "", replans: bool = True
    ) -> None:
        """`replans`: whether a running plan may be replaced by a better one."""
        self._wanted = wanted
        self._planning = planning
        self._company = company
        self._owner = owner
        self._replans = replans

    @property
    def is_held_up(self) -> bool:
        """Whether somebody was never measured and cannot be beside stages."""
        return self._replans and self._planning.is_held_up

    @property
    def replans(self) -> bool:
        """Whether a running plan may be replaced by a better one."""
        return self._replans

    def forget(self, nodes: Sequence[Node]) -> None:
        """Let these workers be measured anew for the next plan."""
        self._planning.forget(nodes)

    async def now(self, nodes: Sequence[Node]) -> Planned:
        """A plan from nothing. Raises as `Planning.now`."""
        return await self._planning.now(self._wanted, nodes)

    async def after(self, lost: Pipeline | None, seen: Attendance) -> Planned:
        """The same stages where that goes, else a new plan; left out are those who failed too often, while it goes.

        Raises as `Planning.now`.
        """
        everyone = self._staying(seen, in_need=True)
        for nodes in (self._company.trusted(everyone), everyone):
            with suppress(DoesNotFit):
                return await self._planned_on(lost, nodes)
        return await self.now(everyone)

    async def without_leavers(self, running: Pipeline, seen: Attendance) -> Planned | None:
        """The running plan without those of its workers that are about to leave; None: nobody is, or nothing fits."""
        leaving = {one.node.facts.control for one in seen.present if one.is_leaving}
        if not leaving & {stage.worker.control for stage in running.plan.stages}:
            return None
        try:
            return await self._planned_on(running, self._staying(seen, in_need=False))
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
        """Those that stay, are not left out, and are nobody else's; while another pipeline is in need its own alone."""
        claims = self._company.claims
        nodes = self._company.used(self._staying(seen, in_need=False))
        return [node for node in nodes if not claims.is_any_down or claims.is_own(self._owner, node.facts.control)]

    def _staying(self, seen: Attendance, *, in_need: bool) -> list[Node]:
        claims = self._company.claims
        return [
            with_own(one)
            for one in seen.present
            if not one.is_leaving and claims.is_open_to(self._owner, one.node.facts.control, in_need=in_need)
        ]

    async def _planned_on(self, running: Pipeline | None, nodes: Sequence[Node]) -> Planned:
        """The running plan on these workers, mended, or if that does not go a new one."""
        if running is not None:
            plan = mended(running.plan, [node.facts for node in nodes], self._company.ready(running.plan))
            if plan is not None:
                # What was predicted was for other workers.
                moved = not same_places(plan, running.plan)
                return replace(running.planned, plan=replace(plan, prediction=None) if moved else plan)
        return await self.now(nodes)
