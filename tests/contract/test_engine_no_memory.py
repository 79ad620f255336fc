"""A device that has no room for one call: the step is a fault, and the engine computes on as if it had not been."""

from __future__ import annotations

import numpy as np
import pytest

from hyperlane.core import Epoch, HeadId, LayerRange, Row, StageSpec
from hyperlane.errors import EngineFault
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.cuda import CudaError, device_count
from hyperlane.stage.loading import load_engine
from hyperlane.stage.memory import HostMemory
from hyperlane.stage.options import EngineOptions
from hyperlane.testing.engines import some_tokens
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model

CARD = pytest.mark.skipif(device_count() == 0, reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=CARD)]
CALLS = ("lend", "push", "pull", "wait")


class Full:
    """Instead of a method of a device's memory: fails when it is told to."""

    def __init__(self, method) -> None:
        self._method = method
        self.fails = False

    def __call__(self, *arguments: object) -> object:
        if self.fails:
            raise CudaError("cudaMalloc on device 0: out of memory")
        return self._method(*arguments)


def memory_of(device: str) -> type:
    if device == "cpu":
        return HostMemory
    from hyperlane.stage.cuda import CudaMemory

    return CudaMemory


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_step_without_room_is_a_fault_and_the_next_ones_are_right(device, call, tmp_path, monkeypatch):
    path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(layers=2, hidden=256, ffn=512))
    with GgufFile(path) as file:
        facts = read_facts(file)
        spec = StageSpec(facts, Epoch(HeadId(bytes(16)), 1), 0, 1, LayerRange(0, 2), 4, 64, 1, 64)
        engine = load_engine(spec, file, options=EngineOptions(device=device))
    prompt = np.array(some_tokens(facts, 24), np.int32).tobytes()

    def step(rows: list[Row], payload: bytes) -> bytes:
        engine.input_buffer(rows)[:] = payload
        return b"".join(map(bytes, engine.step(rows)))

    usual = [Row(0, 0, 24, (23,))]
    expected = step(usual, prompt)
    kind = memory_of(device)
    full = Full(getattr(kind, call))

    def method(*arguments: object) -> object:
        return full(*arguments)

    monkeypatch.setattr(kind, call, method)
    full.fails = True
    # a shape that was not run before, so that it is bound now, and its runs are begun in part
    hungry, tokens = [Row(1, 0, 20, (7, 19)), Row(2, 0, 3, (2,)), Row(3, 0, 1, (0,))], prompt
    with pytest.raises(EngineFault, match=r"failed on layers 0-1: .*out of memory"):
        step(hungry, tokens)
    full.fails = False
    assert step(usual, prompt) == expected
    after = step(hungry, tokens)
    assert step(hungry, tokens) == after
    engine.close()
