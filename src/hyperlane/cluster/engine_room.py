"""What a worker computes with: a device with its memory, how engines are built on it, and what steps cost there.

The only place of a worker that chooses an engine; the engine's own packages are imported when that is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperlane import __version__
from hyperlane.cluster import machine
from hyperlane.cluster.profile.device import Bench, Build
from hyperlane.cluster.profile.profiler import Profiler, ProfileShelf
from hyperlane.cluster.worker import DeviceFacts
from hyperlane.config import WorkerConfig
from hyperlane.core import StageSpec
from hyperlane.models.weights import TensorSource
from hyperlane.stage.engine import Engine
from hyperlane.stage.orders import LoadProgress

if TYPE_CHECKING:
    from hyperlane.stage.options import EngineOptions
    from hyperlane.stage.providers import Device as ChosenDevice


@dataclass(frozen=True, slots=True)
class EngineRoom:
    """What a worker computes with: a device, and how an engine is built on it.

    `build` may let an exception of its progress callable through: then nothing of the engine is left. `sample`: the
    same for made-up weights, of which nothing is kept; None: as `build`.
    """

    device: DeviceFacts
    build: Callable[[StageSpec, TensorSource, Callable[[LoadProgress], None]], Engine]
    sample: Build | None = None

    def profiler(self, threads: int, machine_hash: str, folder: Path, limit: int | None = None) -> Profiler:
        """What steps cost in this room, on this machine, with so many threads; remembered below a folder.

        `limit`: bytes that the worker may use, if it was told.
        """
        device = self.device
        sample = self.sample or (lambda spec, source: self.build(spec, source, lambda _progress: None))
        what = (device.device, device.provider, device.runtime_version, machine.driver_version(), str(threads))
        return Profiler(
            lambda: Bench(
                sample,
                threads,
                device.taken_memory,
                min(device.free_memory(), limit or 1 << 62) // 2,
                machine.others_s,
            ),
            (*what, machine_hash, __version__),
            ProfileShelf(folder),
        )


def onnx_room(config: WorkerConfig) -> EngineRoom:
    """ONNX Runtime on the asked device. Imported here, because no head may import an engine."""
    from hyperlane.stage.loading import load_engine
    from hyperlane.stage.options import EngineOptions
    from hyperlane.stage.providers import choose_device
    from hyperlane.store.ready_store import ReadyStore

    device = choose_device(config.device)
    options = EngineOptions(device=device.provider.name, device_index=device.index, single=device.single)
    memory = _device_memory(device)
    facts = DeviceFacts(
        device=device.name,
        provider=device.provider.ort_name,
        element=device.element,
        runtime_version=device.runtime_version,
        memory_pool=memory.pool,
        memory_total=memory.total,
        free_memory=memory.free,
        taken_memory=memory.taken,
        why=device.reason,
    )
    store = ReadyStore(config.paths.ready)
    threading.Thread(target=lambda: _prepare(options), name="prepare", daemon=True).start()
    return EngineRoom(
        facts,
        lambda spec, source, progress: load_engine(spec, source, store, options, progress=progress),
        lambda spec, source: load_engine(spec, source, None, options),
    )


def _prepare(options: EngineOptions) -> None:
    """While the worker starts: what its first stage would wait for."""
    if options.device != "cpu":
        from hyperlane.stage.onnx_sessions import prepare

        prepare(options)


@dataclass(frozen=True, slots=True)
class _DeviceMemory:
    """Bytes that a worker's stages take their memory from, and the name of that pool."""

    pool: str
    total: int
    free: Callable[[], int]
    taken: Callable[[], int] = machine.taken_memory


def _device_memory(device: ChosenDevice) -> _DeviceMemory:
    """A card's own memory, or the machine's."""
    if device.provider.name != "cuda":
        return _DeviceMemory(machine.machine_id(), machine.total_memory(), machine.free_memory)
    from hyperlane.stage.cuda import device_bus, device_memory

    return _DeviceMemory(
        f"{machine.machine_id()}/cuda@{device_bus(device.index)}",
        device_memory(device.index)[1],
        lambda: device_memory(device.index)[0],
        lambda: device_memory(device.index)[1] - device_memory(device.index)[0],
    )
