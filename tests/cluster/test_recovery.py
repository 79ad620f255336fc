"""Workers that die, hang, leave and come while a head serves: no answer is lost, and each is the undisturbed one."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from hyperlane.cluster import heartbeat
from hyperlane.core import Address, Failed
from hyperlane.errors import PipelineLost
from hyperlane.node import start_serving
from hyperlane.testing.fake_engine import fake_generate
from hyperlane.testing.programmed import DeviceSpeed
from hyperlane.testing.shaper import Shaper
from hyperlane.testing.toy_cluster import PROMPT, WITHIN_S, ToyWorkers, answer, asked, rest, serve_config

TOY = (sys.executable, str(Path(__file__).with_name("toy_worker.py")))

pytestmark = pytest.mark.usefixtures("nothing_is_left")

SLOW = {"HYPERLANE_TEST_STEP_S": "0.005"}
SLOWER = {"HYPERLANE_TEST_STEP_S": "0.02"}
"""There is a middle of an answer in which something can happen."""

COUNT = 60
LONG = 200


def begun(serving, count: int = COUNT):
    """An answer that is under way."""
    stream = asked(serving, count)
    return stream, list(next(stream).tokens)


def expected(serving, count: int = COUNT) -> list[int]:
    return fake_generate(PROMPT, count, serving.service.facts)


def wait_until(serving, condition) -> None:
    """Until the upkeep has brought it about, and a token went through."""
    until_s = time.monotonic() + WITHIN_S
    while not (condition() and serving.service.ready()):
        assert time.monotonic() < until_s
        time.sleep(0.05)


def places(serving) -> set[int]:
    """Control ports of the running plan's workers."""
    return {stage.worker.control.port for stage in serving.plan.stages}


def local_workers(serving) -> list[psutil.Process]:
    pids = {connection.laddr.port: connection.pid for connection in psutil.net_connections("tcp") if connection.pid}
    return [psutil.Process(pids[stage.worker.control.port]) for stage in serving.plan.stages]


# --- those that are lost -------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_in_mid_stream_changes_no_answer(tiny_model, toys):
    with start_serving(serve_config(tiny_model, workers=tuple(toys.start(**SLOW) for _ in range(3)))) as serving:
        streams = [begun(serving) for _ in range(2)]
        waiting = asked(serving, COUNT)
        toys.kill(0)
        for stream, tokens in streams:
            assert tokens + rest(stream) == expected(serving)
        assert rest(waiting) == expected(serving)
        lost = serving.service.status()
        assert lost.losses == 1
        assert lost.ready
        assert toys.ports[0] not in places(serving)
        assert answer(serving) == expected(serving, 24)


@pytest.mark.slow
def test_one_worker_after_another_is_killed_and_the_last_one_goes_on(tiny_model, toys):
    with start_serving(serve_config(tiny_model, workers=tuple(toys.start(**SLOW) for _ in range(3)))) as serving:
        stream, tokens = begun(serving, LONG)
        for victim in (1, 2):
            toys.kill(victim)
            while serving.service.status().losses < victim or not serving.service.ready():
                tokens += next(stream).tokens
        assert tokens + rest(stream) == expected(serving, LONG)
        assert places(serving) == {toys.ports[0]}


@pytest.mark.skipif(os.name != "posix", reason="needs SIGSTOP")
def test_a_worker_that_hangs_is_left_out(tiny_model, toys, monkeypatch):
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.05)
    monkeypatch.setattr(heartbeat, "PATIENCE_S", 0.5)
    with start_serving(serve_config(tiny_model, workers=(toys.start(), toys.start(**SLOW)))) as serving:
        stream, tokens = begun(serving)
        psutil.Process(toys.children[1].pid).suspend()
        assert tokens + rest(stream) == expected(serving)
        toys.kill(1)
        assert serving.service.ready()


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_this_machines_own_workers_are_started_again(tiny_model, workers, monkeypatch):
    monkeypatch.setenv("HYPERLANE_TEST_STEP_S", "0.005")
    with start_serving(serve_config(tiny_model, local_workers=workers), worker_command=TOY) as serving:
        stream, tokens = begun(serving)
        before = places(serving)
        local_workers(serving)[0].kill()
        assert tokens + rest(stream) == expected(serving)
        wait_until(serving, lambda: len(places(serving)) == workers and places(serving) - before)
        assert answer(serving) == expected(serving, 24)
        assert serving.service.status().losses == 1


def test_requests_end_with_an_error_when_no_worker_comes_back_in_time(tiny_model, toys):
    settings = serve_config(tiny_model, workers=(toys.start(**SLOW),), recovery_timeout_s=0.5)
    with start_serving(settings) as serving:
        stream, _ = begun(serving)
        toys.kill(0)
        *_, last = stream
        assert isinstance(last, Failed)
        assert isinstance(last.error, PipelineLost)
        assert "no other was ready within 0.5 s" in str(last.error)
        assert not serving.service.ready()


def test_a_worker_that_comes_after_the_last_one_died_is_used(tiny_model, toys):
    with start_serving(serve_config(tiny_model, workers=(toys.start(**SLOW),))) as serving:
        stream, tokens = begun(serving)
        toys.kill(0)
        serving.offer(toys.start(**SLOW))
        assert tokens + rest(stream) == expected(serving)
        assert places(serving) == {toys.ports[1]}


# --- those that come, and those that leave -------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_that_comes_takes_over_layers_while_streams_run(tiny_model, toys):
    with start_serving(serve_config(tiny_model, workers=(toys.start(**SLOWER),))) as serving:
        stream, tokens = begun(serving, LONG)
        serving.offer(toys.start(**SLOWER))
        while len(serving.plan.stages) == 1 or not serving.service.ready():
            tokens += next(stream).tokens
        assert tokens + rest(stream) == expected(serving, LONG)
        assert serving.service.status().losses == 0
        assert places(serving) == set(toys.ports)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGTERM")
def test_a_worker_that_is_told_to_stop_leaves_when_others_have_its_layers(tiny_model, toys, monkeypatch):
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.05)
    with start_serving(serve_config(tiny_model, workers=(toys.start(**SLOWER), toys.start(**SLOWER)))) as serving:
        stream, tokens = begun(serving, 100)
        leaving = psutil.Process(toys.children[0].pid)
        leaving.terminate()
        assert leaving.wait(30) == 0
        assert tokens + rest(stream) == expected(serving, 100)
        assert serving.service.status().losses == 0
        assert places(serving) == {toys.ports[1]}


@pytest.mark.skipif(os.name != "posix", reason="needs SIGTERM")
def test_a_worker_without_which_nothing_fits_leaves_at_the_second_signal(tiny_model, toys):
    with start_serving(serve_config(tiny_model, workers=(toys.start(),), recovery_timeout_s=0.5)) as serving:
        leaving = psutil.Process(toys.children[0].pid)
        leaving.terminate()
        while b"stop again" not in toys.children[0].log.read_bytes():
            assert answer(serving) == expected(serving, 24)
        leaving.terminate()
        assert leaving.wait(30) == 0


@pytest.fixture
def slow_and_fast(tmp_path):
    """Workers of programmed speed, to be started."""
    speeds = (DeviceSpeed(layer_ms=4.0, row_ms=1.0, token_ms=0.2), DeviceSpeed(layer_ms=0.5, row_ms=0.1, token_ms=0.02))
    kinds = [ToyWorkers(speed.command(), tmp_path / str(number)) for number, speed in enumerate(speeds)]
    yield kinds
    for workers in kinds:
        workers.stop()


@pytest.mark.slow
def test_a_faster_worker_that_comes_is_measured_while_nobody_asks_and_takes_over(tiny_model, slow_and_fast):
    slow, fast = slow_and_fast
    settings = serve_config(tiny_model, workers=(slow.start(),), use="best", measure="auto")
    with start_serving(settings) as serving:
        serving.offer(fast.start())
        wait_until(serving, lambda: places(serving) == set(fast.ports))
        assert answer(serving) == expected(serving, 24)
        status = serving.service.status()
        assert status.plan.prediction is not None
        assert status.losses == 0


@pytest.mark.skipif(sys.platform != "linux", reason="another address of loopback is there on Linux alone")
def test_a_worker_that_is_found_at_a_second_address_is_no_second_worker(tiny_model, toys):
    first = toys.start(**SLOW)
    with (
        Shaper(first, listen=Address("127.0.0.5", first.port)) as second_way,
        start_serving(serve_config(tiny_model, workers=(first,))) as serving,
    ):
        stream, tokens = begun(serving, LONG)
        serving.offer(second_way.address)
        serving.offer(toys.start(**SLOW))
        wait_until(serving, lambda: len(serving.plan.stages) > 1)
        assert tokens + rest(stream) == expected(serving, LONG)
        assert {stage.worker.control for stage in serving.plan.stages} == {first, Address("127.0.0.1", toys.ports[1])}
        assert serving.service.status().losses == 0
