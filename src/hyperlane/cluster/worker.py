"""A worker process: stages in a host, a control port, a data port, until it is told to stop.

Knows no engine: how one is built, and what device it runs on, is handed in.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hyperlane import __version__
from hyperlane.cluster.announce import Announcement, when_parent_ends
from hyperlane.cluster.discovery import interfaces, system
from hyperlane.cluster.discovery.advert import Advert, NodeKind
from hyperlane.cluster.discovery.beacon import Beacon
from hyperlane.cluster.layers.share import Sharing
from hyperlane.cluster.link_dialler import LinkDialler
from hyperlane.cluster.machine import is_loopback, taken_memory
from hyperlane.cluster.messages import CONTROL_PROTOCOL
from hyperlane.cluster.profile.profiler import Profiler
from hyperlane.cluster.trust import old_tls
from hyperlane.cluster.trust.worker_trust import Renewal, WorkerTrust
from hyperlane.cluster.worker_server import WorkerFace, WorkerServer
from hyperlane.config import usable_cores
from hyperlane.core import Address, ElementType, NodeId, WorkerFacts
from hyperlane.errors import ConfigError
from hyperlane.stage.host import LoadEngine, StageHost
from hyperlane.stage.lease import LEASE_S
from hyperlane.wire.listener import DataListener
from hyperlane.wire.sockets import everywhere
from hyperlane.wire.tls import ServerTls

log = logging.getLogger(__name__)

PORT = 7420
DATA_PORTS_TRIED = 16
LEAVING_CHECK_S = 0.05
STOP_WITHIN_S = 8.0
"""After that a worker whose parent is gone ends the hard way: an engine that hangs must not outlive its head."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What an engine would run on. `memory_pool`: see `WorkerFacts`; `free_memory` measures bytes now.

    `taken_memory`: bytes that this process has of them now. `why`: it was chosen.
    """

    device: str
    provider: str
    element: ElementType
    runtime_version: str
    memory_pool: str
    memory_total: int
    free_memory: Callable[[], int]
    taken_memory: Callable[[], int] = taken_memory
    why: str = ""


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Who this worker says it is, as `WorkerFacts` has it. `name` empty: its machine's and its port."""

    node: str = ""
    machine: str = ""
    host: str = ""
    cluster: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """All that a worker process is made of.

    `trust` None: it serves this machine alone, in plain text. `beacon`: lets it be found; None for a head's own.
    `drain_s`: how long it waits for its head to do without it.
    `profiler`: what steps cost on its device.
    `sharing`: gives other workers the tensors that this one holds.
    """

    listen: Address
    announce: bool
    threads: int
    memory_limit: int | None
    device: DeviceFacts
    load_engine: LoadEngine
    holds_model: Callable[[str, str], bool]
    lease_s: float = LEASE_S
    identity: WorkerIdentity = field(default_factory=WorkerIdentity)
    trust: WorkerTrust | None = None
    beacon: Beacon | None = None
    drain_s: float = 30.0
    profiler: Profiler | None = None
    sharing: Sharing | None = None


async def serve(setup: WorkerSetup) -> None:
    """Serve until SIGTERM or SIGINT, or until standard input ends if the worker announces itself.

    A signal lets the head move this worker's layers elsewhere first; a second one, or the end of standard input, stops
    at once.

    Raises:
        ConfigError: a port is in use, or the address is not this machine's.
        KeyboardInterrupt: SIGINT came, and everything has been stopped.

    """
    worker = _Worker(setup)
    try:
        control, data = await worker.start()
        stopped = _Stop()
        if setup.announce:
            Announcement(worker.name, control).print()
            _watch_parent(stopped)
        else:
            chosen = f"computes on {setup.device.device}" + (f" ({setup.device.why})" if setup.device.why else "")
            print(f"worker {worker.name} {chosen}", file=sys.stderr)
            print(f"worker {worker.name} is ready at {control} (data at {data})", file=sys.stderr, flush=True)
        if setup.beacon is not None:
            await setup.beacon.start(worker.advert())
        await stopped.wait()
        await worker.leave(stopped)
    finally:
        if setup.beacon is not None:
            await setup.beacon.close()
        await worker.stop()
    if stopped.by_ctrl_c:
        raise KeyboardInterrupt


def check_listen(address: Address, *, joined: bool) -> None:
    """Refuse to be reached from other machines without certificates.

    Raises:
        ConfigError: the address is not loopback, and this machine has joined no cluster.

    """
    if not joined and not is_loopback(address.host):
        raise ConfigError(
            f"{address} can be reached from other machines, and this one has joined no cluster: run `hyperlane worker "
            "--join TOKEN` (`hyperlane serve` prints a token, `hyperlane token create` makes another)"
        )


def listen_address(*, joined: bool) -> Address:
    """Where a worker listens that was not told: for everybody once it has a certificate."""
    return Address(everywhere() if joined else "127.0.0.1", PORT)


class _Worker:
    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self.name = setup.identity.name or platform.node() or "worker"
        self._listener: DataListener | None = None
        device = setup.device
        self._limit = setup.memory_limit or device.memory_total
        self._host = StageHost(
            self.name,
            setup.load_engine,
            LinkDialler(setup.trust),
            free_memory=device.free_memory,
            memory_limit=self._limit,
            lease_s=setup.lease_s,
        )
        self._tls: ServerTls | None = None
        self._renewal: Renewal | None = None
        if setup.trust is not None:
            if not old_tls.is_ruled_out():
                log.warning("gRPC was imported too early: the control port takes TLS 1.2 as well")
            self._tls = setup.trust.credentials.server_tls(setup.trust.check)
        face = WorkerFace(self._facts, setup.holds_model, setup.profiler, self._share_port)
        self._server = WorkerServer(self._host, face, setup.trust)
        self._control = self._data = setup.listen

    async def start(self) -> tuple[Address, Address]:
        # The data port first: a head that finds the control port must find that one too.
        self._listener = _listen_beside(self._setup.listen, self._host, self._tls)
        self._data = self._listener.address
        self._control = await self._server.start(self._setup.listen)
        if not self._setup.identity.name:
            self.name = self._host.name = f"{self.name}:{self._control.port}"
        if self._setup.trust is not None:
            self._renewal = Renewal(self._setup.trust, self._show_renewed)
        return self._control, self._data

    def _show_renewed(self) -> None:
        """From now on the data port shows the new certificate; gRPC finds it by itself."""
        if self._setup.trust is not None and self._tls is not None:
            self._tls.context.load_cert_chain(self._setup.trust.credentials.file)

    async def leave(self, stopped: _Stop) -> None:
        """Take no further stage, and wait until the head has taken away those that are here."""
        stages, until_s = self._host.drain(), time.monotonic() + self._setup.drain_s
        if stages and not stopped.at_once:
            print(
                f"{self.name} leaves when others have its {stages} stage(s); stop again to leave at once",
                file=sys.stderr,
            )
        while self._host.drain() and not stopped.at_once and time.monotonic() < until_s:
            await asyncio.sleep(LEAVING_CHECK_S)

    async def stop(self) -> None:
        log.info("stopping")
        if self._renewal is not None:
            await asyncio.to_thread(self._renewal.close)
        self._host.drain()
        await self._server.stop()
        if self._listener is not None:
            await asyncio.to_thread(self._listener.close)
        await asyncio.to_thread(self._host.close)
        if self._setup.sharing is not None:
            await asyncio.to_thread(self._setup.sharing.close)

    def _share_port(self) -> int:
        return self._setup.sharing.port(self._data) if self._setup.sharing is not None else 0

    def advert(self) -> Advert:
        """What others may be told of it."""
        who = self._setup.identity
        return Advert(
            NodeId(bytes.fromhex(who.node)),
            who.machine,
            who.cluster,
            self.name,
            NodeKind.WORKER,
            __version__,
            CONTROL_PROTOCOL,
            self._control.port,
            self._data.port,
        )

    def _facts(self) -> WorkerFacts:
        device = self._setup.device
        return WorkerFacts(
            name=self.name,
            control=self._control,
            data=self._data,
            device=device.device,
            provider=device.provider,
            threads=self._setup.threads,
            memory_total=self._limit,
            memory_free=self._host.memory_free(),
            element=device.element,
            hyperlane_version=__version__,
            protocol=CONTROL_PROTOCOL,
            runtime_version=device.runtime_version,
            memory_pool=device.memory_pool,
            node=self._setup.identity.node,
            machine=self._setup.identity.machine,
            cluster=self._setup.identity.cluster,
            hosts=_hosts(self._setup.listen.host),
            cores=usable_cores(),
            host=self._setup.identity.host,
            pool_free=device.free_memory() if self._setup.memory_limit else 0,
        )


def _hosts(listened: str) -> tuple[str, ...]:
    """Where other machines may reach a port that listens there, the likeliest first."""
    ip = ipaddress.ip_address(listened) if interfaces.parsed(listened) else None
    if ip is None or not ip.is_unspecified:
        return (listened,) if ip is not None and not ip.is_loopback else ()
    networks = [network for one in interfaces.suitable(system.interfaces()) for network in one.networks]
    usable = [one.ip for one in networks if not one.is_link_local]
    return tuple(str(one) for one in usable if ip.version == 6 or one.version == 4)


def _listen_beside(control: Address, host: StageHost, tls: ServerTls | None) -> DataListener:
    """A data port: the next free one after the control port, so that firewalls can be told; any if that is any."""
    if control.port == 0:
        return DataListener(Address(control.host, 0), host.admit, host.deliver, tls=tls)
    for port in range(control.port + 1, min(control.port + DATA_PORTS_TRIED, 1 << 16)):
        try:
            return DataListener(Address(control.host, port), host.admit, host.deliver, tls=tls)
        except ConfigError as error:
            log.info("data port: %s", error)
    raise ConfigError(
        f"no free port for data within {DATA_PORTS_TRIED} after {control}: choose another control port with --listen"
    )


class _Stop:
    """Set by SIGTERM, SIGINT or the parent's end. `at_once`: by the last of these, or by a second signal."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.by_ctrl_c = False
        self.at_once = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def parent_is_gone(self) -> None:
        """From any thread."""
        self.at_once = True
        self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()

    def _on_signal(self, number: int, _frame: object) -> None:
        self.at_once = self._event.is_set()
        self.by_ctrl_c = number == signal.SIGINT
        self._loop.call_soon_threadsafe(self._event.set)


def _watch_parent(stopped: _Stop) -> None:
    def parent_is_gone() -> None:
        last_resort = threading.Timer(STOP_WITHIN_S, os._exit, (1,))
        last_resort.daemon = True
        last_resort.start()
        stopped.parent_is_gone()

    when_parent_ends(parent_is_gone)
