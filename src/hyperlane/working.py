"""The composition root of a worker: configuration → a process that hosts stages, until it is told to stop."""

from __future__ import annotations

import asyncio
import functools

from hyperlane.cluster import worker
from hyperlane.cluster.discovery import finding
from hyperlane.cluster.engine_room import EngineRoom, onnx_room
from hyperlane.cluster.layers.share import Sharing
from hyperlane.cluster.trust import opening
from hyperlane.cluster.weights import WeightRoom, engine_loader, holds_model
from hyperlane.cluster.worker import WorkerSetup, listen_address
from hyperlane.config import CacheConfig, DiscoveryConfig, WorkerConfig, load, usable_cores
from hyperlane.models.digests import DigestCache
from hyperlane.models.http_ranges import open_ranges
from hyperlane.models.resolve import Library, copy_of
from hyperlane.stage.lease import LEASE_S
from hyperlane.store.cache import Cache
from hyperlane.store.tensor_store import TensorStore


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
    threads, identity = config.threads or usable_cores(), finding.identity_of(config.paths, trust)

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
        beacon=None if discovery is None or config.announce else finding.beacon(discovery, listen, trust),
        profiler=chosen.profiler(threads, identity.machine, config.paths.cache / "profiles", config.memory),
    )
    asyncio.run(worker.serve(setup))
