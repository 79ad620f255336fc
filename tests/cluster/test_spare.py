"""A worker that stands by with the others' stages takes over when one dies, and another one becomes the spare."""

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


def spare_of(serving, state: str = "ready"):
    """The spare, once it is so."""
    until_s = time.monotonic() + WITHIN_S
    while (spare := serving.service.status().spare).state != state or not serving.service.ready():
        assert time.monotonic() < until_s, spare
        time.sleep(0.02)
    return spare


def ports(serving) -> list[int]:
    return [stage.worker.control.port for stage in serving.plan.stages]


def test_the_spare_takes_over_without_loading_anything(tiny_model, toys: ToyWorkers):
    workers = tuple(toys.start(**SLOW) for _ in range(3))
    told: list[str] = []
    with start_serving(
        serve_config(tiny_model, workers=workers, spare=True, measure="never"), lambda said: told.append(said.phase)
    ) as serving:
        spare = spare_of(serving)
        assert ports(serving) == toys.ports[:2]
        assert spare.address == workers[2]
        assert sorted(spare.layers) == [str(stage.layers) for stage in serving.plan.stages]
        stream = asked(serving, COUNT)
        tokens = list(next(stream).tokens)
        assert "reading" in told
        told.clear()
        toys.kill(0)
        assert tokens + rest(stream) == fake_generate(PROMPT, COUNT, serving.service.facts)
        assert ports(serving) == [toys.ports[2], toys.ports[1]]
        assert "reading" not in told
        assert spare_of(serving, "none").reason
        serving.offer(toys.start(**SLOW))
        assert spare_of(serving).address.port == toys.ports[3]
        assert ports(serving) == [toys.ports[2], toys.ports[1]]


@pytest.mark.slow
def test_a_spare_that_dies_harms_nobody_and_another_one_is_found(tiny_model, toys: ToyWorkers):
    workers = tuple(toys.start(**SLOW) for _ in range(2))
    with start_serving(serve_config(tiny_model, workers=workers, spare=True, measure="never")) as serving:
        assert spare_of(serving).address == workers[1]
        toys.kill(1)
        spare_of(serving, "none")
        serving.offer(toys.start(**SLOW))
        assert spare_of(serving).address.port == toys.ports[2]
        assert serving.service.status().losses == 0


@pytest.mark.slow
def test_one_more_worker_of_this_machine_is_started_for_the_spare(tiny_model):
    settings = serve_config(tiny_model, local_workers=2, spare=True, measure="never")
    with start_serving(settings, worker_command=TOY) as serving:
        assert len(serving.plan.stages) == 2
        assert len(spare_of(serving).layers) == 2


@pytest.mark.slow
def test_a_spare_that_nobody_is_left_for_is_refused(tiny_model, toys: ToyWorkers):
    with pytest.raises(DoesNotFit, match="there is one worker: start one more"):
        start_serving(serve_config(tiny_model, workers=(toys.start(),), spare=True))
