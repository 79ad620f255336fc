"""What a head makes of its workers' health, when it is told, and what a worker may listen on."""

from __future__ import annotations

import asyncio

import pytest

from hyperlane.cluster import heartbeat, machine
from hyperlane.cluster.background import BackgroundLoop
from hyperlane.cluster.heartbeat import Heartbeat, Watched, what_is_wrong
from hyperlane.cluster.stage_orders import specs_of
from hyperlane.cluster.supply import address_towards
from hyperlane.cluster.worker import check_listen
from hyperlane.core import Address, Epoch, HeadId
from hyperlane.errors import ConfigError, PipelineLost, WorkerUnreachable
from hyperlane.stage.orders import HostHealth, StageKey
from hyperlane.stage.stage import StageHealth, StageState
from hyperlane.testing.toy import toy_facts, toy_plan

HEAD = HeadId(b"h" * 16)
KEY = StageKey(Epoch(HEAD, 1), 0)


def health(state: StageState | None = StageState.RUNNING, holds: bool = True, fault: str = "") -> HostHealth:
    stages = () if state is None else ((KEY, StageHealth(state, 0.0, fault=fault)),)
    return HostHealth(holds, 15.0, False, 0, stages)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (health(), ""),
        (health(holds=False), "no longer works for this head"),
        (health(None), "has dropped stage 0 of epoch 1"),
        (health(StageState.FAULTED, fault="not finite"), "faulted: not finite"),
        (health(StageState.WAITING), "waiting for links"),
    ],
)
def test_a_worker_is_well_when_it_holds_the_lease_and_its_stage_runs(said, words):
    assert words in what_is_wrong(said, KEY)
    assert bool(what_is_wrong(said, KEY)) == bool(words)


class Worker:
    """A client that answers as told."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)
        self.name, self.address = "worker a", Address("10.0.0.1", 1)

    async def health(self, head, timeout_s):
        answer = self.answers.pop(0) if self.answers else health()
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("bad", "kind"), [(WorkerUnreachable("gone"), WorkerUnreachable), (health(None), PipelineLost)]
)
async def test_the_first_loss_is_told_once(monkeypatch, bad, kind):
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.01)
    told, heard = [], asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_lost(error) -> None:
        told.append(error)
        loop.call_soon_threadsafe(heard.set)

    workers = [Watched(Worker(health(), bad), KEY), Watched(Worker(health(), bad), KEY), Watched(Worker(), KEY)]
    beating = Heartbeat(HEAD, workers, on_lost)
    await heard.wait()
    await asyncio.sleep(0.05)
    await beating.close()
    assert [type(error) for error in told] == [kind]


async def test_a_worker_that_still_loads_is_not_expected_to_run(monkeypatch):
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.01)
    told = []
    worker = Worker(*[health(None, holds=False)] * 5)
    beating = Heartbeat(HEAD, [Watched(worker, None)], told.append)
    while worker.answers:
        await asyncio.sleep(0.01)
    await beating.close()
    assert told == []


def test_specs_name_each_stages_layers_and_the_precisions_of_both_its_links():
    plan = toy_plan(toy_facts(5), stages=2)
    first, last = specs_of(plan, Epoch(HEAD, 9), step_tokens=64)
    assert (first.is_first, first.is_last, last.is_first, last.is_last) == (True, False, False, True)
    assert (str(first.layers), str(last.layers)) == ("0-1", "2-4")
    assert {first.epoch.counter, last.epoch.counter} == {9}
    assert first.max_step_tokens == 64


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_listened_on_by_anybody(host):
    check_listen(Address(host, 7420), joined=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.20", "::", "node-a"])
def test_another_address_is_refused_unless_the_machine_has_joined_a_cluster(host):
    with pytest.raises(ConfigError, match="--join TOKEN"):
        check_listen(Address(host, 7420), joined=False)
    check_listen(Address(host, 7420), joined=True)


def test_the_machine_has_a_name_and_some_memory():
    assert machine.machine_id() == machine.machine_id()
    assert 0 < machine.free_memory() <= machine.total_memory()


def test_the_way_to_a_peer_on_loopback_begins_on_loopback():
    assert address_towards(Address("127.0.0.1", 9)) == "127.0.0.1"


def test_a_background_loop_runs_coroutines_for_a_thread_and_cancels_the_rest_at_its_end():
    loop = BackgroundLoop("test-loop")
    cancelled = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def start() -> int:
        loop.kept = asyncio.create_task(forever())
        return 7

    assert loop.run(start()) == 7
    loop.close()
    loop.close()
    assert cancelled == [True]


def test_a_background_loop_passes_errors_on():
    loop = BackgroundLoop("test-loop")

    async def fail() -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        loop.run(fail())
    loop.close()
