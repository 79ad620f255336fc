"""A worker process whose engine is the toy model at a programmed cost: clusters of more speeds than one machine has.

    python -m hyperlane.testing.programmed --speed '{"layer_ms": 0.8, "token_ms": 0.1}' --listen HOST:PORT

Takes the options of `hyperlane worker`. All but the computing is real: trust, measuring, links. It takes no weights.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from hyperlane import config, node
from hyperlane.cluster import machine
from hyperlane.cluster.worker import DeviceFacts
from hyperlane.core import ElementType, Row, StageSpec
from hyperlane.testing.fake_engine import FakeEngine


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """Milliseconds of a device's parts.

    `step_ms`: any step. `layer_ms`: a layer for one token; `row_ms`, `token_ms`: for each further row of a decode
    step, and each further token of a chunk. `embed_ms`: of a token, `project_ms`: of a wanted position.
    """

    layer_ms: float
    row_ms: float = 0.0
    token_ms: float = 0.0
    step_ms: float = 0.0
    embed_ms: float = 0.0
    project_ms: float = 0.0

    def command(self) -> list[str]:
        """The beginning of the command line of a worker that is so fast."""
        return [sys.executable, "-m", __spec__.name, "--speed", json.dumps(asdict(self))]


@dataclass(frozen=True, slots=True)
class StageSpeed:
    """What frames cost on one stage of such a device. Implements `FrameCost` of the toy engine."""

    device: DeviceSpeed
    spec: StageSpec

    def of(self, rows: Sequence[Row]) -> float:
        """Seconds of one frame."""
        device, tokens = self.device, sum(row.count for row in rows)
        layer = device.layer_ms + device.row_ms * (len(rows) - 1) + device.token_ms * (tokens - len(rows))
        total = device.step_ms + layer * len(self.spec.layers)
        total += device.embed_ms * tokens if self.spec.is_first else 0.0
        total += device.project_ms * sum(len(row.want) for row in rows) if self.spec.is_last else 0.0
        return total / 1e3


def main() -> None:
    """Be such a worker until told to stop."""
    logging.basicConfig(level=logging.WARNING)
    words = [word for word in sys.argv[1:] if word != "--announce"]
    flags = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    flags.pop("device", None)
    said = flags.pop("speed")
    speed = DeviceSpeed(**json.loads(said))
    device = DeviceFacts(
        device="programmed",
        provider="programmed",
        element=ElementType.F32,
        runtime_version=said,
        memory_pool="",
        memory_total=machine.total_memory(),
        free_memory=machine.free_memory,
    )
    settings = config.load(config.WorkerConfig, announce="--announce" in sys.argv, **flags)
    discovery = None if settings.announce else config.load(config.DiscoveryConfig)
    room = node.EngineRoom(device, lambda spec, _source, _progress: FakeEngine(spec, cost=StageSpeed(speed, spec)))
    node.run_worker(settings, room, discovery=discovery)


if __name__ == "__main__":
    main()
