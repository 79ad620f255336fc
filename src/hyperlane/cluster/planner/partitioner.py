"""`KnapsackPartitioner`: facts and a workload in, the best plan and what it will do out. Pure; the planner's way in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hyperlane.cluster.planner.candidate import Candidate, Kind, PipelineForecast, candidate_of
from hyperlane.cluster.planner.facts import ClusterFacts, Objective, Workload
from hyperlane.cluster.planner.groups import best_groups
from hyperlane.cluster.planner.moving import Moved, Verdict, load_seconds, moved_layers, stages_of, worth_moving
from hyperlane.cluster.planner.optimum import TIE, Optimum
from hyperlane.cluster.planner.override import asked_candidate, asked_layout
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.refusal import refusal_of, too_many
from hyperlane.cluster.planner.replan import fewest_moves, layout_again
from hyperlane.cluster.planner.search import best_layout
from hyperlane.cluster.planner.survey import Survey, survey, with_winner
from hyperlane.core import ModelFacts, Plan, Precision, Prediction, StageCost, StagePlan, WorkerFacts
from hyperlane.errors import ClusterError, DoesNotFit


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """A plan, which has its prediction in short, and the candidate that it was made of, which has it stage by stage."""

    plan: Plan
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class Replanning:
    """The plan to go to, what each worker would have to load for it, and whether that pays."""

    choice: PlanChoice
    moved: tuple[Moved, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class KnapsackPartitioner:
    """Places a model's layers on workers, best by `objective`. Predictions within `tie` (relative) count as equal.

    `everyone`: no worker is left out whom a plan can hold; else the best subset is taken.
    """

    objective: Objective = Objective.LATENCY
    tie: float = TIE
    everyone: bool = False

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
        best = self._best(problem)
        if best is None:
            raise DoesNotFit(refusal_of(problem).text())
        return _choice(
            problem, candidate_of(problem, _kind(problem, len(best.layout)), best.layout, proved=best.proved)
        )

    def groups(self, facts: ClusterFacts, workload: Workload, count: int) -> tuple[PlanChoice, ...]:
        """Plans for several pipelines over different workers, which fit beside one another.

        Raises:
            DoesNotFit: there are not so many; the message says how many there could be.

        """
        problem = Problem(facts, workload)
        layouts = best_groups(problem, count, self.objective, everyone=self.everyone)
        if layouts is None:
            fewer = (n for n in range(count - 1, 0, -1) if best_groups(problem, n, self.objective) is not None)
            raise DoesNotFit(too_many(problem, count, next(fewer, 0)))
        kinds = [_kind(problem, len(layout)) for layout in layouts]
        return tuple(
            _choice(problem, candidate_of(problem, kind, layout, proved=False))
            for kind, layout in zip(kinds, layouts, strict=True)
        )

    def survey(self, facts: ClusterFacts, workload: Workload, layers: Sequence[str] = ()) -> Survey:
        """Every candidate worth showing with its prediction, the winner and why; what does not fit, and what would.

        `layers`: as `plan` has it; what they ask for is the winner then.

        Raises:
            DoesNotFit, ConfigError: as `plan`, for `layers` alone.

        """
        problem = Problem(facts, workload)
        found = survey(problem, self.objective, tie=self.tie)
        if layers:
            asked = asked_candidate(problem, asked_layout(layers, facts.workers, problem.layers))
            return with_winner(found, asked, "as --layers asks")
        widest = self._best(problem) if self.everyone else None
        if widest is None:
            return found
        count = len(widest.layout)
        candidate = candidate_of(problem, _kind(problem, count), widest.layout, proved=widest.proved)
        return with_winner(found, candidate, f"{count} of {len(facts.workers)} nodes, as all were asked for")

    def choice(self, facts: ClusterFacts, workload: Workload, candidate: Candidate) -> PlanChoice:
        """The plan of a candidate of one pipeline, of a survey of the same facts."""
        return _choice(Problem(facts, workload), candidate)

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
        best = self._best(problem)
        if best is None:
            raise DoesNotFit(refusal_of(problem).text())
        layout = fewest_moves(problem, self.objective, stages, best)
        if self.everyone and len(layout) < len(best.layout):
            # It moves less, because it leaves somebody out.
            layout = best.layout
        choice = _choice(problem, candidate_of(problem, _kind(problem, len(layout)), layout, proved=best.proved))
        moved = moved_layers(stages, stages_of(choice.plan.stages))
        load_s = load_seconds((_bytes(move, workload.cost), load_rates[move.worker]) for move in moved)
        again = layout_again(problem, stages)
        before = None if again is None else self._seconds(candidate_of(problem, Kind.ASKED, again))
        return Replanning(choice, moved, worth_moving(before, self._seconds(choice.candidate), load_s))

    def _best(self, problem: Problem) -> Optimum | None:
        """The best layout; of the most workers that a layout can have, if everyone is to take part."""
        count = len(problem.facts.workers)
        if not count:
            return None
        if not self.everyone:
            return best_layout(problem, self.objective, tie=self.tie)
        sizes = range(min(count, problem.layers), 0, -1)
        found = (best_layout(problem, self.objective, size=size, tie=self.tie) for size in sizes)
        return next(filter(None, found), None)

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
    prediction = _prediction(workload, pipeline)
    plan = Plan(workload.model, stages, workload.slots, workload.context, precisions, prediction)
    return PlanChoice(plan, candidate)


def _prediction(workload: Workload, pipeline: PipelineForecast) -> Prediction:
    forecast = pipeline.forecast
    return Prediction(
        token_s=forecast.token_s,
        ttft_s=forecast.ttft_s,
        prompt_tokens=workload.prompt_tokens,
        many_rate=forecast.many_rate,
        streams=forecast.streams,
        groups=forecast.groups,
        frames=workload.frames_in_flight or max(forecast.groups, 2 * len(pipeline.stages)),
        stages_s=tuple(stage.decode_s for stage in pipeline.stages),
        chunk_tokens=forecast.chunk_tokens,
    )


def _bytes(move: Moved, cost: StageCost) -> int:
    layers = sum(cost.layer_weights[layer] for layer in move.layers)
    return layers + cost.embedding * move.embedding + cost.output * move.output
