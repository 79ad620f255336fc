"""What a head and the API's keys have counted, as the text that Prometheus reads. Knows no route and no clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hyperlane.core import HeadStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Of what `exposition` returns."""

Labelled = Sequence[tuple[Sequence[str], float]]
"""Values, each with its labels' values."""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What one API key has used since the start. `name`: its owner's, no secret. `refused`: by the limit's name."""

    name: str
    running: int
    requests: int
    tokens: int
    refused: tuple[tuple[str, int], ...] = ()


def exposition(status: HeadStatus, keys: Sequence[KeyUse] = ()) -> bytes:
    """All figures at one moment, in the text format of `CONTENT_TYPE`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot([*_of_head(status), *_of_keys(keys)]))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def _of_head(status: HeadStatus) -> Iterator[Metric]:
    yield _counter("requests_admitted", "Requests that were taken on", status.requests_admitted)
    endings, refusals = dataclasses.asdict(status.endings), dataclasses.asdict(status.refusals)
    yield _counters("requests_ended", "Requests that ended", ("reason",), [((r,), n) for r, n in endings.items()])
    yield _counters(
        "requests_refused", "Requests that were not taken on", ("reason",), [((r,), n) for r, n in refusals.items()]
    )
    yield _gauge("requests_waiting", "Requests that wait for a slot", status.queued)
    yield _gauge("requests_running", "Requests that have a slot", status.active)
    yield _gauge("slots", "Requests that can run at once", status.slots)
    yield _counter("prompt_tokens", "Tokens of the prompts that were taken on", status.prompt_tokens)
    yield _counter("cached_tokens", "Tokens of prompts that were not computed again", status.cached_tokens)
    yield _counter("completion_tokens", "Tokens of answers", status.completion_tokens)
    yield _counter("pipelines_lost", "Pipelines that were lost", status.losses)
    yield _gauge("ready", "1 when a token went through every stage of the running plan", status.ready)
    yield _gauge("uptime_seconds", "Time since the head's start", status.uptime_s)
    pipelines = list(enumerate(status.replicas or (status,)))
    stages = [
        ((str(number), str(one.plan.index), one.plan.worker.name), one.computed_us / 1e6)
        for number, pipeline in pipelines
        for one in pipeline.stages
    ]
    labels = ("pipeline", "stage", "worker")
    yield _gauges("stage_compute_seconds", "Median time that a stage computes a step", labels, stages)
    each = ("pipeline",)
    yield _gauges("pipeline_ready", "As ready, of each replica", each, [((str(n),), p.ready) for n, p in pipelines])
    running = [((str(number),), pipeline.active) for number, pipeline in pipelines]
    yield _gauges("pipeline_requests_running", "Requests that have a slot of a replica", each, running)
    waiting = [((str(number),), pipeline.queued) for number, pipeline in pipelines]
    yield _gauges("pipeline_requests_waiting", "Requests that wait for a slot of a replica", each, waiting)
    tokens = [((str(number),), pipeline.completion_tokens) for number, pipeline in pipelines]
    yield _counters("pipeline_completion_tokens", "Tokens of answers by a replica", each, tokens)
    losses = [((str(number),), pipeline.losses) for number, pipeline in pipelines]
    yield _counters("pipeline_losses", "How often a replica's pipeline was lost", each, losses)


def _of_keys(keys: Sequence[KeyUse]) -> Iterator[Metric]:
    named = ("key",)
    yield _gauges("key_requests_running", "Answers under way", named, [((key.name,), key.running) for key in keys])
    yield _counters("key_requests", "Requests of a key", named, [((key.name,), key.requests) for key in keys])
    yield _counters("key_tokens", "Tokens that a key used", named, [((key.name,), key.tokens) for key in keys])
    refused = [((key.name, limit), count) for key in keys for limit, count in key.refused]
    yield _counters("key_requests_refused", "Requests beyond a key's limit", ("key", "limit"), refused)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return _counters(name, meaning, (), [((), value)])


def _counters(name: str, meaning: str, labels: Sequence[str], values: Labelled) -> Metric:
    family = CounterMetricFamily(f"hyperlane_{name}", meaning, labels=labels)
    for labelled, value in values:
        family.add_metric(labelled, value)
    return family


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return _gauges(name, meaning, (), [((), value)])


def _gauges(name: str, meaning: str, labels: Sequence[str], values: Labelled) -> Metric:
    family = GaugeMetricFamily(f"hyperlane_{name}", meaning, labels=labels)
    for labelled, value in values:
        family.add_metric(labelled, value)
    return family
