"""The real engine in a worker whose system gives it no more memory: in a load, and in a step. Linux."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hyperlane.config import ServeConfig, load
from hyperlane.core import GenerationRequest, SamplingParams
from hyperlane.errors import LoadFailed
from hyperlane.node import Serving, start_serving
from hyperlane.testing.toy_cluster import ToyWorkers, rest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's"),
    pytest.mark.usefixtures("nothing_is_left"),
]

WORKER = (sys.executable, "-m", "hyperlane", "worker", "--threads", "1")
TOKENS = 40
LONG = tuple(range(1000, 1600))
MIB = 1 << 20


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[ToyWorkers]:
    """Real ones, as if on other machines."""
    found = ToyWorkers(WORKER, tmp_path)
    yield found
    found.stop()


def data_bytes(process: psutil.Process) -> int:
    """What counts for RLIMIT_DATA."""
    (line,) = (line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmData" in line)
    return int(line.split()[1]) << 10


def allow(process: psutil.Process, more: int | None) -> None:
    """From now on it may take so many bytes more; None: all that there are."""
    limit = resource.RLIM_INFINITY if more is None else data_bytes(process) + more
    process.rlimit(psutil.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def settings(model: Path, *workers) -> ServeConfig:
    return load(ServeConfig, model=str(model), workers=workers, threads=1, slots=2, context=1024, prefix_cache="off")


def answer(serving: Serving, prompt: tuple[int, ...], count: int = TOKENS) -> list[int]:
    params = SamplingParams(temperature=0.0)
    return rest(serving.service.submit(GenerationRequest("r", prompt, params, max_tokens=count, ignore_eos=True)))


def test_a_load_without_memory_is_refused_with_the_numbers_and_the_worker_lives_on(smollm2_path, workers: ToyWorkers):
    address = workers.start()
    process = psutil.Process(workers.children[0].pid)
    allow(process, 30 * MIB)
    with pytest.raises(
        LoadFailed, match=r"gave no more memory.*counted with [\d,.]+ MiB.*weights.*KV arena.*MiB should be"
    ):
        start_serving(settings(smollm2_path, address))
    allow(process, None)
    with start_serving(settings(smollm2_path, address)) as serving:
        assert len(answer(serving, LONG[:4])) == TOKENS
    assert psutil.Process(workers.children[0].pid) == process


@pytest.fixture
def packed_model(smollm2_path: Path) -> Path:
    """Its weights are in the store: a worker that packs them keeps memory for later."""
    with start_serving(load(ServeConfig, model=str(smollm2_path), local_workers=1, threads=1)):
        return smollm2_path


def test_a_step_without_memory_loses_its_pipeline_alone(packed_model, workers: ToyWorkers):
    addresses = [workers.start() for _ in range(2)]
    with start_serving(settings(packed_model, *addresses)) as serving:
        answer(serving, LONG[:3])
        victim = serving.plan.stages[1].worker.control
        process = psutil.Process(workers.children[workers.ports.index(victim.port)].pid)
        allow(process, MIB)
        hungry = answer(serving, LONG)
        status = serving.service.status()
        assert status.losses >= 1
        assert victim not in [stage.worker.control for stage in serving.plan.stages]
        allow(process, None)
        assert answer(serving, LONG) == hungry
        assert process.is_running()
        assert serving.service.status().losses == status.losses
