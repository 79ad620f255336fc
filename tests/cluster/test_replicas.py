"""Several pipelines over real workers: one dies in the middle of answers, and is there again for new requests."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from hyperlane.errors import DoesNotFit
from hyperlane.node import start_serving
from hyperlane.testing.fake_engine import fake_generate
from hyperlane.testing.toy_cluster import PROMPT, WITHIN_S, ToyWorkers, asked, rest, serve_config

TOY = (sys.executable, str(Path(__file__).with_name("toy_worker.py")))

pytestmark = pytest.mark.usefixtures("nothing_is_left")

SLOW = {"HYPERLANE_TEST_STEP_S": "0.005"}
COUNT = 60


def until(condition, what: str) -> None:
    until_s = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < until_s, what
        time.sleep(0.02)


def ports(serving) -> list[list[int]]:
    return [[stage.worker.control.port for stage in plan.stages] for plan in serving.plans]


def ready(serving) -> list[bool]:
    return [replica.ready for replica in serving.service.status().replicas]


def test_requests_go_on_with_the_other_pipeline_and_the_lost_one_comes_back(tiny_model, toys: ToyWorkers):
    workers = tuple(toys.start(**SLOW) for _ in range(3))
    settings = serve_config(tiny_model, workers=workers, replicas=2, measure="never", prefix_cache="off")
    with start_serving(settings) as serving:
        wide, narrow = sorted(ports(serving), key=len, reverse=True)
        assert sorted([*wide, *narrow]) == sorted(toys.ports)
        streams = [asked(serving, COUNT) for _ in range(2)]
        begun = [list(next(stream).tokens) for stream in streams]
        assert [replica.active for replica in serving.service.status().replicas] == [1, 1]
        toys.kill(toys.ports.index(wide[0]))
        expected = fake_generate(PROMPT, COUNT, serving.service.facts)
        assert [tokens + rest(stream) for tokens, stream in zip(begun, streams, strict=True)] == [expected] * 2
        until(lambda: ready(serving) == [True, True], "the lost pipeline did not come back")
        status = serving.service.status()
        assert (status.requests_admitted, status.requests_ended, status.losses) == (2, 2, 1)
        assert sorted(map(set, ports(serving)), key=min) == sorted([{wide[1]}, set(narrow)], key=min)
        again = [asked(serving, COUNT) for _ in range(2)]
        begun = [list(next(stream).tokens) for stream in again]
        assert [replica.active for replica in serving.service.status().replicas] == [1, 1]
        assert [tokens + rest(stream) for tokens, stream in zip(begun, again, strict=True)] == [expected] * 2


@pytest.mark.slow
def test_a_pipeline_that_lost_its_only_worker_takes_the_next_one_that_comes(tiny_model, toys: ToyWorkers):
    workers = tuple(toys.start(**SLOW) for _ in range(2))
    with start_serving(serve_config(tiny_model, workers=workers, replicas=2, measure="never")) as serving:
        stream = asked(serving, COUNT)
        tokens = list(next(stream).tokens)
        toys.kill(0)
        assert tokens + rest(stream) == fake_generate(PROMPT, COUNT, serving.service.facts)
        until(lambda: sorted(ready(serving)) == [False, True], "the loss was not seen")
        serving.offer(toys.start(**SLOW))
        until(lambda: ready(serving) == [True, True], "the new worker was not used")
        assert sorted(ports(serving)) == sorted([[port] for port in toys.ports[1:]])


@pytest.mark.slow
def test_one_spare_stands_by_for_all_pipelines(tiny_model, toys: ToyWorkers):
    workers = tuple(toys.start(**SLOW) for _ in range(3))
    settings = serve_config(tiny_model, workers=workers, replicas=2, spare=True, measure="never")
    with start_serving(settings) as serving:
        until(lambda: serving.service.status().spare.state == "ready", "the spare did not get ready")
        assert len(serving.service.status().spare.layers) == 2
        stream = asked(serving, COUNT)
        tokens = list(next(stream).tokens)
        victim = ports(serving)[0][0]
        toys.kill(toys.ports.index(victim))
        assert tokens + rest(stream) == fake_generate(PROMPT, COUNT, serving.service.facts)
        until(lambda: ready(serving) == [True, True], "the spare did not take over")
        assert victim not in [port for replica in ports(serving) for port in replica]


@pytest.mark.slow
def test_more_replicas_than_workers_are_refused_with_the_numbers(tiny_model, toys: ToyWorkers):
    with pytest.raises(DoesNotFit, match="2 replicas need at least 2 workers, not 1"):
        start_serving(serve_config(tiny_model, workers=(toys.start(),), replicas=2))
