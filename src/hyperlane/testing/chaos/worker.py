"""A worker that can be wounded: at SIGUSR1 its next step finds no memory, at SIGUSR2 its engine fails in it.

    python -m hyperlane.testing.chaos.worker --engine toy|onnx [--step-ms 4] [--load-ms 200] [--loading FILE] …

Takes the options of `hyperlane worker`. `onnx` is the real engine; `toy` the toy model, which takes no weights, with a
programmed time for steps and loads. While a stage is being loaded a wound ends the load, and the FILE is there.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hyperlane import config, node
from hyperlane.cluster import machine
from hyperlane.cluster.engine_room import onnx_room
from hyperlane.cluster.worker import DeviceFacts
from hyperlane.core import ElementType, Row, StageSpec
from hyperlane.models.weights import TensorSource
from hyperlane.stage.engine import Engine
from hyperlane.stage.orders import LoadProgress
from hyperlane.testing.fake_engine import FakeCost
from hyperlane.testing.picky_engine import PickyEngine

MORE_THAN_THERE_IS = 1 << 62
LOAD_REPORTS = 10


class Wounds:
    """What was done to this process and was not felt yet."""

    def __init__(self) -> None:
        self._next: Callable[[], object] | None = None

    def listen(self) -> None:
        """Take wounds by signal; in the main thread."""
        signal.signal(signal.SIGUSR1, lambda *_: self._wound(_take_all_memory))
        signal.signal(signal.SIGUSR2, lambda *_: self._wound(_fail))

    def feel(self) -> None:
        """Raise what is due, once."""
        wound, self._next = self._next, None
        if wound is not None:
            wound()

    def _wound(self, wound: Callable[[], object]) -> None:
        self._next = wound


class WoundedEngine:
    """An engine that feels them in its steps."""

    def __init__(self, engine: Engine, wounds: Wounds) -> None:
        self._engine = engine
        self._wounds = wounds
        self.input_buffer = engine.input_buffer
        self.copy = engine.copy
        self.close = engine.close

    @property
    def element(self) -> ElementType:
        return self._engine.element

    @property
    def private_bytes(self) -> int:
        return self._engine.private_bytes

    def step(self, rows: Sequence[Row], bank: int | None = None) -> Sequence[memoryview]:
        self._wounds.feel()
        return self._engine.step(rows, bank)


def main() -> None:
    """Be such a worker until told to stop."""
    options, words = _options()
    flags = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    settings = config.load(config.WorkerConfig, announce=options.announce, **flags)
    wounds = Wounds()
    wounds.listen()
    room = _toy_room(options.step_ms, options.load_ms) if options.engine == "toy" else onnx_room(settings)

    def build(spec: StageSpec, source: TensorSource, progress: Callable[[LoadProgress], None]) -> Engine:
        def felt(report: LoadProgress) -> None:
            wounds.feel()
            progress(report)

        with _shown(options.loading):
            return WoundedEngine(room.build(spec, source, felt), wounds)

    node.run_worker(settings, replace(room, build=build))


@contextmanager
def _shown(file: Path | None) -> Iterator[None]:
    """A file is there as long as the block lasts."""
    if file is not None:
        file.touch()
    try:
        yield
    finally:
        if file is not None:
            file.unlink(missing_ok=True)


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("toy", "onnx"), default="toy")
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--load-ms", type=float, default=0.0)
    parser.add_argument("--loading", type=Path)
    parser.add_argument("--announce", action="store_true")
    return parser.parse_known_args()


def _toy_room(step_ms: float, load_ms: float) -> node.EngineRoom:
    device = DeviceFacts(
        device="toy",
        provider="toy",
        element=ElementType.F32,
        runtime_version="0",
        memory_pool="",
        memory_total=machine.total_memory(),
        free_memory=machine.free_memory,
    )

    def build(spec: StageSpec, _source: TensorSource, progress: Callable[[LoadProgress], None]) -> Engine:
        for done in range(LOAD_REPORTS):
            time.sleep(load_ms / LOAD_REPORTS / 1e3)
            progress(LoadProgress("loading", done + 1, LOAD_REPORTS))
        return PickyEngine(spec, cost=FakeCost(step_s=step_ms / 1e3))

    return node.EngineRoom(device, build)


def _take_all_memory() -> bytearray:
    return bytearray(MORE_THAN_THERE_IS)


def _fail() -> None:
    raise RuntimeError("the engine failed on purpose")


if __name__ == "__main__":
    main()
