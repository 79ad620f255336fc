"""Several pipelines of one model beside each other, where it fits some nodes alone. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hyperlane.cluster.planner.candidate import Candidate, Kind, PipelineForecast, pipeline_of
from hyperlane.cluster.planner.facts import Objective
from hyperlane.cluster.planner.layout import Layout, layout_of
from hyperlane.cluster.planner.predict import group_sizes
from hyperlane.cluster.planner.problem import Problem
from hyperlane.cluster.planner.search import best_layout


def best_replicas(problem: Problem) -> Candidate | None:
    """The number of replicas with the most tokens per second of all streams; None where fewer than two fit.

    Every node that holds the model alone may be one, the fastest first; the nodes that do not are one more together, if
    they hold it together. Streams are shared out in proportion to speed, and every replica has all the slots.
    """
    layouts = _layouts(problem)
    candidates = [_candidate(problem, layouts[:count]) for count in range(2, len(layouts) + 1)]
    # A pipeline so slow that no stream is worth giving it is none.
    several = [candidate for candidate in candidates if len(candidate.pipelines) > 1]
    return max(several, key=lambda candidate: candidate.many_rate, default=None)


def _layouts(problem: Problem) -> list[Layout]:
    predictor, streams = problem.predictor, problem.workload.streams
    alone = [layout_of([(worker, 0, problem.layers)]) for worker in range(len(problem.facts.workers))]
    alone = [layout for layout in alone if problem.fits(layout)]
    alone.sort(key=lambda layout: predictor.best_groups(layout, streams)[1])
    chosen: list[Layout] = []
    for layout in alone:
        if problem.fits(*chosen, layout):
            chosen.append(layout)
    together = _rest(problem, chosen)
    return [*chosen, together] if chosen and together is not None else chosen


def _rest(problem: Problem, chosen: Sequence[Layout]) -> Layout | None:
    """The best pipeline over the nodes that are no replica by themselves."""
    used = {share.worker for layout in chosen for share in layout}
    names = [name for number, name in enumerate(problem.facts.names) if number not in used]
    if len(names) < 2:
        return None
    smaller = Problem(problem.facts.only(names), problem.workload)
    found = best_layout(smaller, Objective.THROUGHPUT)
    if found is None:
        return None
    numbers = [problem.facts.names.index(name) for name in smaller.facts.names]
    layout = layout_of((numbers[s.worker], s.layers.first, s.layers.last) for s in found.layout)
    return layout if problem.fits(*chosen, layout) else None


def _candidate(problem: Problem, layouts: Sequence[Layout]) -> Candidate:
    streams = problem.workload.streams
    rates = [1 / problem.predictor.best_groups(layout, streams)[1] for layout in layouts]
    shares = shared_out(streams, rates)
    pipelines = tuple(
        pipeline_of(problem, layout, count) for layout, count in zip(layouts, shares, strict=True) if count
    )
    rate = sum(pipeline.forecast.many_rate for pipeline in pipelines)
    workers = tuple(name for pipeline in pipelines for name in pipeline.workers)
    return Candidate(Kind.REPLICAS, workers, pipelines, many_rate=rate / max(1.0, _head_load(problem, pipelines)))


def _head_load(problem: Problem, pipelines: Sequence[PipelineForecast]) -> float:
    """How much of its time the one head would be busy with all replicas."""
    forecasts = [pipeline.forecast for pipeline in pipelines]
    return sum(problem.predictor.head_s(group_sizes(f.streams, f.groups)) / f.period_s for f in forecasts)


def shared_out(streams: int, rates: Sequence[float]) -> list[int]:
    """Streams for each, in proportion to the rates: the next one always to whom it is worth most."""
    counts = [0] * len(rates)
    for _ in range(streams):
        chosen = max(range(len(rates)), key=lambda number: rates[number] / (counts[number] + 1))
        counts[chosen] += 1
    return counts
