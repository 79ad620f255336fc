"""A candidate of a plan: its stages, what it will do, and the memory it takes; or what it lacks. Plain frozen data."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hyperlane.cluster.planner.layout import Layout
from hyperlane.cluster.planner.predict import Forecast
from hyperlane.cluster.planner.problem import Problem
from hyperlane.core import LayerRange


class Kind(enum.StrEnum):
    """Why a candidate is shown."""

    NODE = "node"
    SUBSET = "subset"
    ALL = "all nodes"
    REPLICAS = "replicas"
    ASKED = "as asked"


@dataclass(frozen=True, slots=True)
class StageForecast:
    """One stage. `decode_s`: computing one token of one stream; `hop_s`: from it to the next node of the ring.

    Bytes: of weights, KV arena and workspace; `process_bytes`: of the process without them; `free_bytes`: what is left
    of the worker's memory, or of its pool's. `same_machine`: the hop leaves none.
    """

    worker: str
    layers: LayerRange
    decode_s: float
    hop_s: float
    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int
    process_bytes: int
    free_bytes: int
    same_machine: bool = False

    @property
    def used_bytes(self) -> int:
        """All bytes of the stage and its process."""
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes + self.process_bytes


@dataclass(frozen=True, slots=True)
class PipelineForecast:
    """One pipeline and what it will do. `enter_s`: the head's time for a token and the hop to the first stage."""

    stages: tuple[StageForecast, ...]
    forecast: Forecast
    enter_s: float

    @property
    def workers(self) -> tuple[str, ...]:
        """The workers of its stages, in order."""
        return tuple(stage.worker for stage in self.stages)


@dataclass(frozen=True, slots=True)
class Shortage:
    """What a worker cannot hold: `what` takes `needed_bytes` there, and `free_bytes` are free."""

    worker: str
    what: str
    needed_bytes: int
    free_bytes: int

    @property
    def missing_bytes(self) -> int:
        """Bytes that would have to be free besides."""
        return max(0, self.needed_bytes - self.free_bytes)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One line of the table.

    `pipelines`: one, several for replicas, none if it does not fit (then `shortages` or `reason` say why).
    `proved`: no pipeline over the same number of the cluster's nodes is better. Rates: of all pipelines together.
    """

    kind: Kind
    workers: tuple[str, ...]
    pipelines: tuple[PipelineForecast, ...] = ()
    shortages: tuple[Shortage, ...] = ()
    reason: str = ""
    proved: bool = True
    many_rate: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether it can be loaded."""
        return bool(self.pipelines)

    @property
    def best(self) -> PipelineForecast:
        """The pipeline that serves a single stream; of a candidate that fits."""
        return min(self.pipelines, key=lambda pipeline: pipeline.forecast.token_s)

    @property
    def token_s(self) -> float:
        """Seconds per token of one stream."""
        return self.best.forecast.token_s

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token of one stream."""
        return self.best.forecast.ttft_s


def pipeline_of(problem: Problem, layout: Layout, streams: int | None = None) -> PipelineForecast:
    """What one layout will do and take. `streams`: other than the workload's."""
    cost = problem.ring_of_one_token()
    ends = [*(share.worker for share in layout), len(cost.links) - 1]
    stages = tuple(
        StageForecast(
            worker=problem.facts.names[share.worker],
            layers=share.layers,
            decode_s=cost.stages.of(share),
            hop_s=float(cost.links[share.worker, following]),
            weight_bytes=weights,
            kv_bytes=kv,
            workspace_bytes=problem.cost_on(share.worker).workspace,
            process_bytes=problem.facts.devices[share.worker].process_bytes,
            free_bytes=problem.free_after(layout, share.worker),
            same_machine=problem.stays_on_one_machine(share.worker, following),
        )
        for share, following in zip(layout, ends[1:], strict=True)
        for weights, kv in [problem.stage_bytes(share, layout)]
    )
    forecast = problem.predictor.forecast(layout, streams)
    return PipelineForecast(stages, forecast, float(cost.links[-1, layout[0].worker]))


def candidate_of(problem: Problem, kind: Kind, layout: Layout, *, proved: bool = True) -> Candidate:
    """The candidate of one pipeline."""
    pipeline = pipeline_of(problem, layout)
    return Candidate(kind, pipeline.workers, (pipeline,), proved=proved, many_rate=pipeline.forecast.many_rate)


def shortages_of(problem: Problem, layout: Layout) -> tuple[Shortage, ...]:
    """The workers, and the pools of workers, that cannot hold their share of a layout."""
    use, caps, names = problem.memory.use, problem.memory.caps, problem.facts.names
    alone = tuple(
        Shortage(names[share.worker], f"layers {share.layers}", int(use.of(share)), int(caps[share.worker]))
        for share in layout
        if use.of(share) > caps[share.worker]
    )
    pools = tuple(
        Shortage(" + ".join(names[worker] for worker in limit.by_worker(layout)), "their stages", *map(int, taken))
        for limit in problem.memory.shared
        if not limit.is_kept(layout)
        for taken in [(limit.used(layout), limit.limit)]
    )
    return alone or pools
