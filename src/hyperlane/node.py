"""The composition root: configuration → running objects, and their orderly end. Every part is wired here, in view.

Decides nothing by itself; knows which class plays which role.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from hyperlane.cluster import worker
from hyperlane.cluster.report import Progress, Report
from hyperlane.cluster.weights import holds_model, open_weights
from hyperlane.cluster.worker import DeviceFacts, WorkerSetup
from hyperlane.config import WorkerConfig, usable_cores
from hyperlane.core import StageSpec
from hyperlane.models.digests import DigestCache
from hyperlane.models.weights import TensorSource
from hyperlane.stage.engine import Engine
from hyperlane.stage.orders import LoadOrder, LoadProgress

__all__ = ["EngineRoom", "Progress", "Report", "run_worker"]


@dataclass(frozen=True, slots=True)
class EngineRoom:
    """What a worker computes with: a device, and how an engine is built on it.

    `build` may let an exception of its progress callable through: then nothing of the engine is left.
    """

    device: DeviceFacts
    build: Callable[[StageSpec, TensorSource, Callable[[LoadProgress], None]], Engine]


def run_worker(config: WorkerConfig, room: EngineRoom) -> None:
    """Be a worker until SIGTERM, SIGINT or, with `announce`, the end of standard input.

    Args:
        config: what the worker needs.
        room: computes with something else than ONNX Runtime.

    Raises:
        ConfigError: a port is in use, or the address may not be listened on without `insecure`.
        RuntimeMissing: no ONNX Runtime is installed, or the device cannot be used.

    """
    worker.check_listen(config.listen, insecure=config.insecure)
    chosen = room
    digests = DigestCache(config.paths.cache / "digests")

    def load_engine(order: LoadOrder, progress: Callable[[LoadProgress], None]) -> Engine:
        with open_weights(order, digests, progress) as source:
            return chosen.build(order.spec, source, progress)

    setup = WorkerSetup(
        listen=config.listen,
        announce=config.announce,
        threads=config.threads or usable_cores(),
        memory_limit=config.memory,
        device=chosen.device,
        load_engine=load_engine,
        holds_model=lambda fingerprint, path: holds_model(fingerprint, path, digests),
    )
    asyncio.run(worker.serve(setup))
