"""What goes in beside a batch's tokens goes to a device with them, in one copy: the same answers, one call fewer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from hyperlane.core import Row, StageSpec
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage import onnx_sessions
from hyperlane.stage.engine import Engine
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import EngineOptions
from hyperlane.testing.engines import ENGINE_CHECKS, EngineHarness, InProcessPipeline, some_tokens
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model
from hyperlane.testing.twin_memory import TwinMemory

LAYERS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> GgufFile:
    return GgufFile(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel(layers=LAYERS)))


@pytest.fixture
def harness(model, monkeypatch) -> Callable[..., tuple[EngineHarness, list[TwinMemory]]]:
    """Engines on devices with memory of their own, and those memories, one for each engine."""
    made: list[TwinMemory] = []

    def build(*, fuse: bool, captures: bool = False) -> tuple[EngineHarness, list[TwinMemory]]:
        made.clear()

        class Device(TwinMemory):
            def __init__(self) -> None:
                super().__init__(captures=captures)
                made.append(self)

        monkeypatch.setattr(onnx_sessions, "HostMemory", Device)

        def engine(spec: StageSpec) -> Engine:
            return load_engine(spec, model, options=EngineOptions(fuse=fuse))

        return EngineHarness(read_facts(model), engine), made

    return build


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
def test_an_engine_on_a_device_with_memory_of_its_own(check, harness):
    check(harness(fuse=True)[0])


@pytest.mark.parametrize(("fuse", "copies"), [(True, 1), (False, 2)])
@pytest.mark.parametrize("captures", [False, True])
def test_a_token_of_every_slot_goes_in_by_so_many_copies_and_comes_out_by_one(fuse, copies, captures, harness):
    made, memories = harness(fuse=fuse, captures=captures)
    with made.pipeline(LAYERS) as pipeline:
        for slots in (1, 4):
            rows = [Row(slot, 0, 1, (0,)) for slot in range(slots)]
            pipeline.step(rows, [5] * slots)
            for memory in memories:
                memory.done.clear()
            pipeline.step([replace(row, start=1) for row in rows], [6] * slots)
            calls = [[call for call, _ in memory.done] for memory in memories]
            assert calls == [["push"] * copies + ["pull", "wait"]] * LAYERS


def test_shapes_that_share_the_room_before_the_tokens_answer_as_those_with_copies_of_their_own(harness):
    """Captured steps of several sizes in turns. Slots 0, 7 and 8 are two runs that both begin at slot 0."""
    ways = ([0], [0, 1, 2, 3], [0, 1], [0, 7, 8], [5, 0], [0, 1, 2, 3, 4, 5], [1], [0])
    found, waits = [], []
    for fuse in (True, False):
        made, memories = harness(fuse=fuse, captures=True)
        with closing(InProcessPipeline(made.facts, [made.make(spec) for spec in made.specs(2, slots=10)])) as pipeline:
            answers, counted = _steps(pipeline, ways, memories)
        found.append(answers)
        waits.append(counted)
    np.testing.assert_array_equal(found[0], found[1])
    assert waits[1] == [2] * len(ways)
    assert waits[0] == [4 if slots == [0, 7, 8] else 2 for slots in ways], "the room is written when it was read"


def _steps(
    pipeline: InProcessPipeline, ways: Sequence[list[int]], memories: Sequence[TwinMemory]
) -> tuple[np.ndarray, list[int]]:
    """Answers of a step for each way, all slots having begun; and how often all stages waited in each."""
    answers, waits, lengths = [], [], [4 + slot for slot in range(10)]
    for slot, length in enumerate(lengths):
        pipeline.step([Row(slot, 0, length)], some_tokens(pipeline.facts, length))
    for slots in ways:
        for memory in memories:
            memory.done.clear()
        rows = [Row(slot, lengths[slot], 1, (0,)) for slot in slots]
        answers += [np.array(one[0].logits) for one in pipeline.step(rows, [7 + slot for slot in slots])]
        waits.append(sum(call == "wait" for memory in memories for call, _ in memory.done))
        for slot in slots:
            lengths[slot] += 1
    return np.stack(answers), waits
