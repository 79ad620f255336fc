"""Real worker processes are measured, remember it, and measure the paths to one another."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hyperlane import config
from hyperlane.cluster.local import LocalWorkerOptions, LocalWorkers
from hyperlane.cluster.planner.facts import HEAD
from hyperlane.cluster.profile.cluster import ClusterProfiler
from hyperlane.cluster.profile.measured import Node
from hyperlane.cluster.profile.messages import PathOrder
from hyperlane.cluster.profile.pairs import head_end
from hyperlane.cluster.profile.shape import ProfileShape
from hyperlane.cluster.report import silent
from hyperlane.cluster.worker_client import WorkerClient
from hyperlane.core import Address, HeadId
from hyperlane.errors import WorkerBusy
from hyperlane.models import inventory
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.node import start_serving

TOY = (sys.executable, str(Path(__file__).with_name("toy_worker.py")))
HEAD_ID = HeadId(b"h" * 16)


@pytest.fixture
def serve(tiny_model, tmp_path, monkeypatch):
    """A head with workers of its own that are measured, in a home where nothing was measured before."""
    monkeypatch.setenv("HYPERLANE_HOME", str(tmp_path))

    def start(workers: int, command: tuple[str, ...] | None = TOY, report=silent, **settings: object):
        settings = {"threads": 1, "slots": 2, "context": 128, "measure": "auto"} | settings
        made = config.load(config.ServeConfig, model=tiny_model, local_workers=workers, **settings)
        return start_serving(made, report, worker_command=command)

    return start


def shape_of(model: str, kind: str) -> ProfileShape:
    with GgufFile(Path(model)) as file:
        facts = read_facts(file)
    types = (kind,) * len(inventory.layer_tensors(facts, 0))
    return ProfileShape(facts, (types,) * 2, "Q8_0", "Q8_0", (1, 2), (2, 8), 16, 0)


@pytest.mark.parametrize("command", [TOY, pytest.param(None, marks=pytest.mark.slow)], ids=["toy", "real"])
def test_a_plan_is_made_of_what_was_measured_and_remembered(serve, tmp_path, command):
    told = []
    with serve(2, command, told.append) as serving:
        prediction = serving.plan.prediction
        assert prediction is not None
        assert len(prediction.stages_s) == 2
        assert prediction.token_s > sum(prediction.stages_s) >= 0
        links = serving.service.status().links
        assert (len(links), sum(link.in_plan for link in links)) == (6, 3)
        assert all(link.rtt_us > 0 and link.bytes_per_s > 0 for link in links)
    assert any(one.phase == "measuring" for one in told)
    assert len(list((tmp_path / "cache" / "profiles").iterdir())) == 1, "both workers are one device, and one shape"
    told.clear()
    with serve(2, command, told.append) as serving:
        assert serving.plan.prediction is not None
    assert not any(one.phase == "measuring" for one in told)


def test_a_worker_that_runs_stages_is_not_measured_but_measures_its_paths(serve, tiny_model):
    with serve(2, measure="never") as serving:
        assert serving.plan.prediction is None
        first, second = (stage.worker for stage in serving.plan.stages)

        async def ask():
            client = WorkerClient(first.control)
            targets = second.data, replace(second.data, port=1), Address("10.0.0.1", 7)
            try:
                await client.describe()
                with pytest.raises(WorkerBusy, match="runs stages"):
                    await client.profile(shape_of(tiny_model, "Q4_0"), lambda _told: None, 60.0)
                return await client.measure_path(PathOrder(HEAD_ID, targets), 60.0)
            finally:
                await client.close()

        reached, closed, elsewhere = asyncio.run(ask())
    assert (reached.failure, reached.target) == ("", second.data)
    assert reached.bytes_per_s > 1e6
    assert "nothing answers" in closed.failure
    assert "leaves this machine" in elsewhere.failure


def test_a_cluster_is_measured_whole_and_once(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERLANE_HOME", str(tmp_path))
    options = LocalWorkerOptions(1, "auto", None, config.load(config.Paths), command=TOY)
    workers = LocalWorkers([options] * 2)
    try:
        facts, progress = asyncio.run(measured(workers.addresses(), shape_of(tiny_model, "Q4_0")))
    finally:
        workers.close()
    names = facts.names
    assert {(path.source, path.target) for path in facts.paths} == {
        (one, other) for one in (HEAD, *names) for other in (HEAD, *names) if one != other
    }
    assert all(path.loopback for path in facts.paths)
    assert [device.worker for device in facts.devices] == list(names)
    assert facts.head.step_s > 0
    assert {pool.workers for pool in facts.pools} == {names}
    assert "measuring paths" in {one.phase for one in progress}


async def measured(addresses, shape):
    clients = [WorkerClient(address) for address in addresses]
    progress = []
    try:
        nodes = [Node(client, (await client.describe()).facts) for client in clients]
        profiler = ClusterProfiler(HEAD_ID, head_end(nodes[0].facts.machine, nodes[0].facts.host))
        found = await profiler.measure(nodes, shape, progress.append)
        asked = len(progress)
        again = await profiler.measure(nodes, shape, progress.append)
        assert again.facts.paths == found.facts.paths
        assert len(progress) == asked, "what is known is not measured again"
        for node in nodes:
            assert found.address(HEAD, node.facts.name) == node.facts.data
        return found.facts, progress
    finally:
        await asyncio.gather(*(client.close() for client in clients))
