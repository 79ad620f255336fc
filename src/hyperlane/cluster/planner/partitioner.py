"""`KnapsackPartitioner`: facts and a workload in, the best plan and what it will do out. Pure; the planner's way in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hyperlane.cluster.planner.candidate import Candidate, Kind, PipelineForecast, candidate_of
from hyperlane.cluster.planner.facts import ClusterFacts, Objective, Workload
from hyperlane.cluster.planner.moving import Moved, Verdict, load_seconds, moved_layers, stages_of, worth_moving
from hyperlane.cluster.planner.optimum import TIE
from hyperlane.cluster.planner.override import asked_candidate, asked_layout
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.refusal import refusal_of
from hyperlane.cluster.planner.replan import fewest_moves, layout_again
from hyperlane.cluster.planner.search import best_layout
from hyperlane.cluster.planner.survey import Survey, survey
from hyperlane.core import ModelFacts, Plan, Precision, StageCost, StagePlan, WorkerFacts
from hyperlane.errors import ClusterError, DoesNotFit


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """A plan and the candidate that it was made of, with its prediction.

    `groups`, `frames`: decode groups and frames that the prediction keeps in flight: what the head should be told.
    """

    plan: Plan
    candidate: Candidate
    groups: int
    frames: int

    @property
    def prediction(self) -> PipelineForecast:
        """What the plan is expected to do, stage by stage."""
        return self.candidate.best


@dataclass(frozen=True, slots=True)
class Replanning:
    """The plan to go to, what each worker would have to load for it, and whether that pays."""

    choice: PlanChoice
    moved: tuple[Moved, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class KnapsackPartitioner:
    """Places a model's layers on workers, best by `objective`. Predictions within `tie` (relative) count as equal."""

    objective: Objective = Objective.LATENCY
    tie: float = TIE

    def plan(self, facts: ClusterFacts, workload: Workload, layers: Sequence[str] = ()) -> PlanChoice:
        """The best plan; or the one that `layers` asks for, each as `NODE=a:b` (layers a … b − 1).

        Raises:
            DoesNotFit: the message says which bytes are missing where and what would make it fit.
            ConfigError: `layers` is not a list of ranges that have every layer once, on different workers.

        """
        problem = Problem(facts, workload)
        if layers:
            layout = asked_layout(layers, facts.workers, problem.layers)
            return _choice(problem, asked_candidate(problem, layout))
        best = best_layout(problem, self.objective, tie=self.tie) if facts.workers else None
        if best is None:
            raise DoesNotFit(refusal_of(problem).text())
        return _choice(
            problem, candidate_of(problem, _kind(problem, len(best.layout)), best.layout, proved=best.proved)
        )

    def survey(self, facts: ClusterFacts, workload: Workload) -> Survey:
        """Every candidate worth showing with its prediction, the winner and why; what does not fit, and what would."""
        return survey(facts, workload, self.objective, tie=self.tie)

    def replan(
        self, running: Plan, facts: ClusterFacts, workload: Workload, load_rates: Mapping[str, float]
    ) -> Replanning:
        """The plan to go to from a running one, of all equally good ones that which moves least.

        Args:
            running: the plan that runs; its workers may be gone.
            facts: the cluster as it is now, with the memory that is free when the running plan is unloaded.
            workload: what is run.
            load_rates: bytes per second at which each worker obtains and loads weights.

        Raises:
            DoesNotFit: no plan fits the workers that there are.

        """
        problem, stages = Problem(facts, workload), stages_of(running.stages)
        best = best_layout(problem, self.objective, tie=self.tie) if facts.workers else None
        if best is None:
            raise DoesNotFit(refusal_of(problem).text())
        layout = fewest_moves(problem, self.objective, stages, best)
        choice = _choice(problem, candidate_of(problem, _kind(problem, len(layout)), layout, proved=best.proved))
        moved = moved_layers(stages, stages_of(choice.plan.stages))
        load_s = load_seconds((_bytes(move, workload.cost), load_rates[move.worker]) for move in moved)
        again = layout_again(problem, stages)
        before = None if again is None else self._seconds(candidate_of(problem, Kind.ASKED, again))
        return Replanning(choice, moved, worth_moving(before, self._seconds(choice.candidate), load_s))

    def _seconds(self, candidate: Candidate) -> float:
        forecast = candidate.best.forecast
        return forecast.token_s if self.objective is Objective.LATENCY else forecast.period_s


@dataclass(frozen=True, slots=True)
class MeasuredPlanner:
    """A `core.Planner` over what was measured before: the workers' costs and paths by name, and the expected workload.

    Free memory is taken from what the workers say of themselves when they are asked for the plan.
    """

    partitioner: KnapsackPartitioner
    measured: ClusterFacts
    expected: Workload

    def plan(
        self, model: ModelFacts, workers: Sequence[WorkerFacts], cost: StageCost, slots: int, context: int
    ) -> Plan:
        """As `core.Planner.plan`.

        Raises:
            DoesNotFit: no plan fits.
            ClusterError: a worker was not measured.

        """
        unknown = [worker.name for worker in workers if worker.name not in self.measured.names]
        if unknown:
            raise ClusterError(f"{', '.join(unknown)} was not measured: measure the cluster again")
        facts = self.measured.refreshed(workers)
        workload = replace(self.expected, model=model, cost=cost, slots=slots, context=context)
        return self.partitioner.plan(facts, workload).plan


def _kind(problem: Problem, size: int) -> Kind:
    if size == 1:
        return Kind.NODE
    return Kind.ALL if size == len(problem.facts.workers) else Kind.SUBSET


def _choice(problem: Problem, candidate: Candidate) -> PlanChoice:
    workload, pipeline = problem.workload, candidate.best
    workers = {worker.name: worker for worker in problem.facts.workers}
    stages = tuple(
        StagePlan(
            index=index,
            worker=workers[stage.worker],
            layers=stage.layers,
            weight_bytes=stage.weight_bytes,
            kv_bytes=stage.kv_bytes,
            workspace_bytes=stage.workspace_bytes,
        )
        for index, stage in enumerate(pipeline.stages)
    )
    # Token ids go to the first stage and candidates to the head: what is packed is between stages.
    precisions = (Precision.RAW, *(workload.precision,) * (len(stages) - 1), Precision.RAW)
    plan = Plan(workload.model, stages, workload.slots, workload.context, precisions)
    groups = pipeline.forecast.groups
    return PlanChoice(plan, candidate, groups, workload.frames_in_flight or max(groups, 2 * len(stages)))


def _bytes(move: Moved, cost: StageCost) -> int:
    layers = sum(cost.layer_weights[layer] for layer in move.layers)
    return layers + cost.embedding * move.embedding + cost.output * move.output
