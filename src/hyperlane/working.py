"""The composition root of a worker: configuration → a process that hosts stages, until it is told to stop."""

from __future__ import annotations

import asyncio
import functools
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from hyperlane.cluster import worker
from hyperlane.cluster.devices.enrolment import enrol
from hyperlane.cluster.devices.spots import spots
from hyperlane.cluster.devices.supervisor import Supervisor, WorkerCommand
from hyperlane.cluster.discovery import finding
from hyperlane.cluster.engine_room import EngineRoom, onnx_room
from hyperlane.cluster.layers.share import Sharing
from hyperlane.cluster.trust import opening
from hyperlane.cluster.weights import WeightRoom, engine_loader, holds_model
from hyperlane.cluster.worker import WorkerSetup, listen_address
from hyperlane.config import CacheConfig, DiscoveryConfig, WorkerConfig, load, usable_cores
from hyperlane.core import Address
from hyperlane.errors import ConfigError
from hyperlane.models.digests import DigestCache
from hyperlane.models.http_ranges import open_ranges
from hyperlane.models.resolve import Library, copy_of
from hyperlane.stage.lease import LEASE_S
from hyperlane.store.cache import Cache
from hyperlane.store.tensor_store import TensorStore

WORKER = (sys.executable, "-m", "hyperlane", "worker")


def lend(config: WorkerConfig, discovery: DiscoveryConfig, words: Sequence[str] = ()) -> None:
    """Be a worker, or the supervisor of one for each device where `devices` says so, or the machine has several GPUs.

    `words`: flags that its workers get as well. Raises as `run_worker` and `run_devices`.
    """
    devices = devices_to_lend(config)
    if devices:
        run_devices(config, devices, (*WORKER, *words))
    else:
        run_worker(config, discovery=discovery)


def devices_to_lend(config: WorkerConfig, count_gpus: Callable[[], Sequence[str]] | None = None) -> tuple[str, ...]:
    """The devices that get a worker each; none where this process is to be the worker.

    A machine that has joined its cluster as one node stays one until it is told otherwise. `count_gpus`: names those
    that are here; looked up by default.

    Raises:
        ConfigError, RuntimeMissing: as `stage.devices.devices_of`.

    """
    from hyperlane.stage import devices

    if config.announce:
        return ()
    if config.devices:
        if config.device != "auto":
            raise ConfigError("--device is one device, --devices are several: give one of the two")
        return devices.devices_of(config.devices)
    if config.device != "auto" or config.credentials is not None or config.name is not None:
        return ()
    found = tuple((count_gpus or devices.gpus)())
    if len(found) < 2:
        return ()
    if opening.has_joined(config.paths):
        print(
            f"this machine has {len(found)} GPUs and has joined as one node: {found[0]} is used. To use each, start "
            "once with --devices all --join TOKEN",
            file=sys.stderr,
        )
        return ()
    return found


def run_devices(config: WorkerConfig, devices: Sequence[str], words: Sequence[str] = WORKER) -> None:
    """Keep a worker up for each device, each a node of its own, until SIGTERM or SIGINT.

    `words`: the beginning of a worker's command line.

    Raises:
        ClusterError, ConfigError: no device can be used (any more), or a port is out of range.
        NotTrusted: the devices cannot join the cluster, or not all of them have.
        KeyboardInterrupt: SIGINT came, and everything has been stopped.

    """
    host, threads = config.name or platform.node() or "worker", config.threads or usable_cores()
    asked = config.listen or Address("127.0.0.1", worker.PORT)
    places = spots(devices, host, asked, threads, config.paths.devices)
    joined = enrol(config, places)
    listen = config.listen or listen_address(joined=joined)
    worker.check_listen(listen, joined=joined)
    places = spots(devices, host, listen, threads, config.paths.devices)
    Supervisor(places, WorkerCommand(tuple(words), config.paths, config.memory, config.drain_s)).run()


def run_worker(
    config: WorkerConfig,
    room: EngineRoom | None = None,
    lease_s: float = LEASE_S,
    discovery: DiscoveryConfig | None = None,
) -> None:
    """Be a worker until SIGTERM, SIGINT or, with `announce`, the end of standard input.

    Args:
        config: what the worker needs.
        room: computes with something else than ONNX Runtime.
        lease_s: how long a head's stages are kept without hearing from it.
        discovery: how it lets itself be found; None: not at all.

    Raises:
        ConfigError: a port is in use, or the address may be listened on only after joining a cluster.
        NotTrusted: the cluster cannot be joined, or this machine's certificate cannot be used.
        RuntimeMissing: no ONNX Runtime is installed, or the device cannot be used.
        KeyboardInterrupt: SIGINT came, and everything has been stopped.

    """
    trust = opening.worker_trust_of(config)
    listen = config.listen or listen_address(joined=trust is not None)
    worker.check_listen(listen, joined=trust is not None)
    chosen = room or onnx_room(config)
    digests = DigestCache(config.paths.cache / "digests")
    threads = config.threads or usable_cores()
    identity = replace(finding.identity_of(config.paths, trust), name=config.name or "")

    cache = Cache(config.paths.cache, load(CacheConfig, paths=config.paths).limit)
    copies = functools.partial(copy_of, library=Library(config.paths.models, offline=True))
    weights = WeightRoom(digests, TensorStore(config.paths.tensors), cache, trust, open_ranges, copies)
    setup = WorkerSetup(
        listen=listen,
        announce=config.announce,
        threads=threads,
        memory_limit=config.memory,
        device=chosen.device,
        load_engine=engine_loader(weights, chosen.build),
        holds_model=lambda model, path: holds_model(model, path, digests) or copies(model) is not None,
        lease_s=lease_s,
        trust=trust,
        drain_s=config.drain_s,
        identity=identity,
        sharing=Sharing(config.paths.tensors, config.paths.state / "logs", trust.folder if trust else None),
        # A head knows the workers that it starts itself, and they have its credentials.
        beacon=None if discovery is None or config.credentials else finding.beacon(discovery, listen, trust),
        profiler=chosen.profiler(threads, identity.machine, config.paths.cache / "profiles", config.memory),
    )
    asyncio.run(worker.serve(setup))
