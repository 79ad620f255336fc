"""Plans of real worker processes whose engines take a programmed time: measured, chosen, overridden, shown."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from hyperlane import config
from hyperlane.cluster.announce import Child
from hyperlane.cluster.pipelines import doubt
from hyperlane.cluster.worker_client import WorkerClient
from hyperlane.core import Address
from hyperlane.errors import ConfigError
from hyperlane.node import make_plan, start_serving
from hyperlane.testing.fake_engine import fake_generate
from hyperlane.testing.program import Program
from hyperlane.testing.programmed import DeviceSpeed

FAST = DeviceSpeed(layer_ms=0.5, row_ms=0.1, token_ms=0.02)
SLOW = DeviceSpeed(layer_ms=4.0, row_ms=1.0, token_ms=0.2)
PROMPT = tuple(range(20, 40))


class Workers:
    """Workers of programmed speed on loopback."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[Child] = []

    def start(self, speed: DeviceSpeed) -> Address:
        log = self._logs / f"{len(self._children)}.log"
        child = Child([*speed.command(), "--listen", "127.0.0.1:0", "--announce"], log, dict(os.environ))
        self._children.append(child)
        return child.announcement(time.monotonic() + 60).address

    def stop(self) -> None:
        for child in self._children:
            child.stop(time.monotonic() + 10)


@pytest.fixture(scope="module")
def workers(hyperlane_home, tmp_path_factory):
    """A slow one and a fast one, in this order."""
    made = Workers(tmp_path_factory.mktemp("logs"))
    yield made.start(SLOW), made.start(FAST)
    made.stop()


def settings(model: str, workers: tuple[Address, ...], **more: object) -> config.ServeConfig:
    return config.load(config.ServeConfig, model=model, workers=workers, slots=2, measure="auto", **more)


def layers_of(plan) -> dict[Address, int]:
    return {stage.worker.control: len(stage.layers) for stage in plan.stages}


def test_workers_that_were_named_are_all_used_the_fast_one_for_most_layers(tiny_model, workers):
    slow, fast = workers
    with start_serving(settings(tiny_model, workers)) as serving:
        assert layers_of(serving.plan) == {slow: 1, fast: 3}
        tokens = [token for token, _ in zip(answer(serving), range(8), strict=False)]
        assert tokens == fake_generate(PROMPT, 8, serving.service.facts)
        status = serving.service.status()
        assert status.plan.prediction is not None
        assert status.plan.prediction.token_s > 5.5e-3  # what is programmed, before any link
        assert status.achieved.prompt_tokens == len(PROMPT)


def answer(serving, count: int = 8) -> list[int]:
    from hyperlane.core import GenerationRequest, SamplingParams, TextDelta

    request = GenerationRequest("r", PROMPT, SamplingParams(temperature=0.0), max_tokens=count, ignore_eos=True)
    return [t for event in serving.service.submit(request) if isinstance(event, TextDelta) for t in event.tokens]


def test_the_best_of_them_is_the_fast_one_alone(tiny_model, workers):
    outlook = make_plan(settings(tiny_model, workers, use="best"))
    assert layers_of(outlook.plan) == {workers[1]: 4}
    assert [len(candidate.workers) for candidate in outlook.survey.candidates if candidate.fits][:3] == [1, 1, 2]


def test_layers_by_hand_are_loaded_as_they_were_asked_for(tiny_model, workers):
    slow, fast = workers
    asked = (f"{fast}=0:1", f"{slow}=1:4")
    with start_serving(settings(tiny_model, workers, layers=asked)) as serving:
        assert [(stage.worker.control, str(stage.layers)) for stage in serving.plan.stages] == [
            (fast, "0-0"),
            (slow, "1-3"),
        ]
    with pytest.raises(ConfigError, match="leaves out layers 1:4"):
        make_plan(settings(tiny_model, workers, layers=asked[:1]))


def test_this_machines_own_workers_have_short_names(tiny_model):
    local = config.load(
        config.ServeConfig, model=tiny_model, local_workers=2, slots=2, layers=("local1=0:3", "local0=3:4")
    )
    with start_serving(local, worker_command=tuple(FAST.command())) as serving:
        assert [len(stage.layers) for stage in serving.plan.stages] == [3, 1]
    one = config.load(config.ServeConfig, model=tiny_model, local_workers=1, layers=("local1=0:4",))
    with pytest.raises(ConfigError, match="1 worker"):
        start_serving(one, worker_command=tuple(FAST.command()))


def test_the_command_shows_every_candidate_and_why_the_winner_wins(tiny_model, workers, hyperlane_home):
    addresses = [
        "--measure",
        "auto",
        "--slots",
        "2",
        *(word for address in workers for word in ("--worker", str(address))),
    ]
    with Program("plan", tiny_model, *addresses, "--use", "best", home=hyperlane_home) as shown:
        assert shown.wait() == 0, shown.stderr
    lines = shown.stdout.splitlines()
    (winner,) = [line for line in lines if line.startswith("*")]
    assert f":{workers[1].port} 0-3" in winner
    assert sum("one node" in line for line in lines) == 2
    assert any("all 2 nodes" in line for line in lines)
    assert "1 of 2 nodes: " in lines[-1]
    assert "free after" in shown.stdout
    with Program("plan", tiny_model, *addresses, "--json", "--optimize", "throughput", home=hyperlane_home) as said:
        assert said.wait() == 0, said.stderr
    data = json.loads(said.stdout)
    assert len(data["plan"]["stages"]) == 2
    assert data["survey"]["objective"] == "throughput"
    assert data["survey"]["why"].startswith("2 of 2 nodes, as all were asked for")
    assert data["plan"]["prediction"]["many_rate"] == data["survey"]["winner"]["many_rate"]


def test_what_does_not_fit_is_refused_with_what_would(tiny_model, hyperlane_home):
    asked = ("plan", tiny_model, "--local-workers", "1", "--memory", "1MiB", "--measure", "auto")
    with Program(*asked, home=hyperlane_home) as shown:
        assert shown.wait() == 5, shown.stderr
    assert "one more node with" in shown.stdout


@pytest.mark.slow
def test_a_plan_that_long_does_other_than_predicted_is_measured_again_in_quiet(tiny_model, workers, monkeypatch):
    monkeypatch.setattr(doubt, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(doubt, "LOOKS", 1)
    monkeypatch.setattr(doubt, "LEAST_TOKENS", 8)
    monkeypatch.setattr(doubt, "WRONG_BY", 1.0)  # nothing is exactly as predicted
    asked: list[bool] = []
    profile = WorkerClient.profile

    async def spied(self, *words, again):
        asked.append(again)
        return await profile(self, *words, again=again)

    monkeypatch.setattr(WorkerClient, "profile", spied)
    with start_serving(settings(tiny_model, workers)) as serving:
        before = serving.service.status()
        assert asked == [False, False]
        expected = fake_generate(PROMPT, 24, serving.service.facts)
        assert answer(serving, 24) == expected
        until = time.monotonic() + 60
        while (now := serving.service.status()).epoch == before.epoch or not now.ready:
            assert time.monotonic() < until, "it is believed for ever"
            time.sleep(0.02)
        assert asked == [False, False, True, True]
        assert layers_of(serving.plan) == layers_of(before.plan)
        assert now.plan.prediction is not None
        assert answer(serving, 24) == expected
