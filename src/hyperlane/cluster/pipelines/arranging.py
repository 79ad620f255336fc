"""The pipelines that a head begins with, and its spare: from the workers that are there to a plan for each.

Knows no epoch and loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hyperlane.cluster.planner.facts import Objective
from hyperlane.cluster.planner.spare import Sparing, best_sparing, held_by, room_beside, spare_of
from hyperlane.cluster.planning import Grounds, Outlook, Planned, Planning
from hyperlane.cluster.profile.measured import Node
from hyperlane.cluster.wanted import Wanted
from hyperlane.core import Plan, SpareStatus, WorkerFacts
from hyperlane.errors import DoesNotFit


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A plan for each pipeline, over different workers, and the worker that is kept out of all."""

    planned: tuple[Planned, ...]
    spare: WorkerFacts | None = None


@dataclass(frozen=True, slots=True)
class Arranging:
    """Makes arrangements of one model.

    `replicas`: how many pipelines; `spare`: whether a worker is kept out; `objective`: what plans are best at.
    """

    wanted: Wanted
    planning: Planning
    objective: Objective = Objective.LATENCY
    spare: bool = False
    replicas: int = 1

    async def now(self, nodes: Sequence[Node]) -> Arrangement:
        """What these workers are for.

        Raises:
            DoesNotFit: no plan fits, or none does without one of the workers.
            ConfigError, WorkerUnreachable, VersionMismatch, NotTrusted: as `Planning.now`.

        """
        grounds = await self.planning.grounds(self.wanted, nodes)
        return self._with_spare(nodes, grounds) if self.spare else Arrangement(self._plans(nodes, grounds))

    async def outlook(self, nodes: Sequence[Node]) -> Outlook:
        """What could be planned now, and what would. Raises as `now`; where nothing fits the survey says what would."""
        if not self.spare and self.replicas == 1:
            return await self.planning.outlook(self.wanted, nodes)
        arrangement = await self.now(nodes)
        spare, plans = arrangement.spare, tuple(one.plan for one in arrangement.planned)
        others = [node for node in nodes if spare is None or node.facts.control != spare.control]
        found = await self.planning.outlook(self.wanted, others)
        standby = outlook_of(spare, plans) if spare is not None else None
        found = replace(found, spare=standby)
        return replace(found, plan=plans[0], replicas=plans) if self.replicas > 1 else found

    def _plans(self, nodes: Sequence[Node], grounds: Grounds) -> tuple[Planned, ...]:
        if self.replicas > 1:
            return self.planning.several(self.wanted, nodes, grounds, self.replicas)
        return (self.planning.on(self.wanted, nodes, grounds),)

    def _with_spare(self, nodes: Sequence[Node], grounds: Grounds) -> Arrangement:
        """A worker that the best plans leave out anyway, else the one whose absence costs them least."""
        planned = self._plans(nodes, grounds)
        found = spare_of([one.plan for one in planned], [node.facts for node in nodes])
        if found is not None:
            return Arrangement(planned, found)
        made: dict[str, tuple[Planned, ...]] = {}
        refused: list[DoesNotFit] = []
        for node in nodes:
            try:
                made[node.facts.name] = self._plans([other for other in nodes if other is not node], grounds)
            except DoesNotFit as error:
                refused.append(error)
        best = best_sparing(
            [
                Sparing(
                    tuple(one.plan for one in made[node.facts.name]), node.facts, self._seconds(made[node.facts.name])
                )
                for node in nodes
                if node.facts.name in made
            ]
        )
        if best is None:
            raise _no_spare(len(nodes), refused)
        return Arrangement(made[best.spare.name], best.spare)

    def _seconds(self, planned: Sequence[Planned]) -> float:
        """What the plans are predicted to take: the slowest one's token, or a token of all together; 0: not known."""
        predictions = [one.plan.prediction for one in planned]
        known = [prediction for prediction in predictions if prediction is not None]
        if len(known) < len(planned):
            return 0.0
        if self.objective is Objective.LATENCY:
            return max(prediction.token_s for prediction in known)
        return 1 / sum(prediction.many_rate for prediction in known)


def _no_spare(workers: int, refused: Sequence[DoesNotFit]) -> DoesNotFit:
    count = "is one worker" if workers == 1 else f"are {workers} workers"
    why = f"; without any one of them:\n{refused[-1]}" if workers > 1 and refused else ""
    return DoesNotFit(
        f"--spare keeps one worker out of the plan, and there {count}: start one more, or leave --spare off{why}"
    )


def outlook_of(spare: WorkerFacts, plans: Sequence[Plan]) -> SpareStatus:
    """What a spare would hold, with the memory that is free now."""
    held = held_by(plans, room_beside(plans, spare))
    layers, stages = tuple(str(one.stage.layers) for one in held), sum(len(plan.stages) for plan in plans)
    return SpareStatus("planned", spare.name, spare.control, layers, stages)
