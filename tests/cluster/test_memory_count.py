"""What a plan counts for a stage is at least what a worker really takes beyond an empty worker."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from hyperlane import config
from hyperlane.cluster.announce import Child
from hyperlane.core import GenerationRequest, SamplingParams
from hyperlane.node import start_serving

PROMPT_TOKENS = 900


def private_bytes(pid: int) -> int:
    return psutil.Process(pid).memory_full_info().uss


@pytest.fixture
def empty_worker_bytes(tmp_path: Path) -> int:
    """Private memory of a worker that has loaded nothing."""
    command = [sys.executable, "-m", "hyperlane", "worker", "--listen", "127.0.0.1:0", "--announce"]
    worker = Child(command, tmp_path / "empty.log")
    worker.announcement(time.monotonic() + 60)
    taken = private_bytes(worker.pid)
    worker.stop(time.monotonic() + 10)
    return taken


@pytest.mark.parametrize("workers", [1, 2])
def test_no_worker_takes_more_than_its_plan_counted(smollm2_path, empty_worker_bytes, workers):
    settings = config.load(
        config.ServeConfig, model=str(smollm2_path), local_workers=workers, threads=1, slots=1, context=1024
    )
    with start_serving(settings) as serving:
        request = GenerationRequest("r", tuple(range(1000, 1000 + PROMPT_TOKENS)), SamplingParams(), max_tokens=4)
        for _ in serving.service.submit(request):
            pass
        pids = [child.pid for child in psutil.Process().children() if "worker" in child.cmdline()]
        taken = sorted(private_bytes(pid) - empty_worker_bytes for pid in pids)
        counted = sorted(s.weight_bytes + s.kv_bytes + s.workspace_bytes for s in serving.plan.stages)
    assert len(taken) == workers
    assert all(used <= allowed for used, allowed in zip(taken, counted, strict=True))
