"""A Load for which a worker's system or card has no room: refused with the numbers, and the same worker serves on."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from hyperlane.cluster.worker_client import WorkerClient
from hyperlane.core import Address, Epoch, HeadId, LayerRange, StageSpec
from hyperlane.errors import DoesNotFit, LoadFailed
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.node import start_serving
from hyperlane.stage.arena import kv_bytes
from hyperlane.stage.cuda import CudaMemory, device_count, device_memory
from hyperlane.stage.orders import LoadOrder, WeightSources
from hyperlane.testing.toy_cluster import ToyWorkers, answer, serve_config

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's"),
    pytest.mark.usefixtures("nothing_is_left"),
]

MIB = 1 << 20
SLOTS, CONTEXT = 64, 1 << 15  # 1 GiB of entries in a tiny model, none of which is written
TIMEOUT_S = 60.0
KERNELS = 512 * MIB
"""What a card's first session brings and keeps."""


@contextmanager
def limited(process: psutil.Process, _order: LoadOrder) -> Iterator[str]:
    """The system gives the worker 256 MiB more and no byte besides."""
    limit = process.memory_info().vms + 256 * MIB
    process.rlimit(psutil.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    yield r"gave no more memory.*counted with [\d,.]+ MiB \(weights .*KV arena [\d,.]+ MiB.*MiB should be free"
    process.rlimit(psutil.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def crowded(_process: psutil.Process, order: LoadOrder) -> Iterator[str]:
    """Somebody else has the card's memory, but for the arena: the worker may see that before it begins, or not."""
    memory = CudaMemory(0)
    taken = device_memory(0)[0] - kv_bytes(order.spec) - 4 * MIB
    memory.entries((taken,), "uint8")
    memory.wait()
    numbers = r"weights take .*without them [\d,]+ MiB of [\d,]+ MiB are free"
    yield rf"could not be loaded on cuda:0: {numbers}|KV arena .*MiB are free: [\d,.]+ MiB are missing"
    memory.close()


CARD = pytest.mark.skipif(device_count() == 0, reason="no CUDA device")
CASES = [
    pytest.param("cpu", limited, LoadFailed, id="cpu"),
    pytest.param("cuda:0", crowded, (LoadFailed, DoesNotFit), id="cuda", marks=CARD),
]


def order_for(path: str) -> LoadOrder:
    """Of a stage whose arena is what there is no room for; a head that counts nothing else."""
    with GgufFile(Path(path)) as file:
        facts = read_facts(file)
    spec = StageSpec(facts, Epoch(HeadId(b"h" * 16), 1), 0, 1, LayerRange(0, facts.layers), SLOTS, CONTEXT, 1, 64)
    return LoadOrder(spec, WeightSources(path), 1, 1, 1)


async def load(address: Address, order: LoadOrder) -> None:
    client = WorkerClient(address)
    try:
        await client.load(order, lambda progress: None, TIMEOUT_S)
    finally:
        await client.close()


async def free_bytes(address: Address) -> int:
    client = WorkerClient(address)
    try:
        return (await client.describe()).facts.memory_free
    finally:
        await client.close()


@pytest.mark.parametrize(("device", "starve", "error"), CASES)
def test_a_load_without_room_is_refused_and_the_same_worker_serves_on(device, starve, error, tiny_model, tmp_path):
    workers = ToyWorkers((sys.executable, "-m", "hyperlane", "worker", "--threads", "1", "--device", device), tmp_path)
    try:
        address, order = workers.start(), order_for(tiny_model)
        process = psutil.Process(workers.children[0].pid)
        before = asyncio.run(free_bytes(address)), process.memory_full_info().uss
        with starve(process, order) as said, pytest.raises(error, match=said):
            asyncio.run(load(address, order))
        assert device == "cpu" or before[0] - asyncio.run(free_bytes(address)) < KERNELS
        assert process.memory_full_info().uss - before[1] < 128 * MIB
        with start_serving(serve_config(tiny_model, workers=(address,))) as serving:
            assert len(answer(serving)) == 24
        assert psutil.Process(workers.children[0].pid) == process
    finally:
        workers.stop()


def test_more_than_there_is_is_refused_before_anything_is_loaded(tiny_model, tmp_path):
    command = (sys.executable, "-m", "hyperlane", "worker", "--threads", "1", "--device", "cpu", "--memory", "512MiB")
    workers = ToyWorkers(command, tmp_path)
    try:
        address = workers.start()
        with pytest.raises(DoesNotFit, match=r"KV arena 1,0[\d.]+ MiB.*MiB are free: [\d,.]+ MiB are missing"):
            asyncio.run(load(address, order_for(tiny_model)))
        with start_serving(serve_config(tiny_model, workers=(address,))) as serving:
            assert len(answer(serving)) == 24
    finally:
        workers.stop()
