"""Workers behind cables that can be cut, and what a fault does to one of them. Linux alone; knows no head.

Each worker has an address of its own on loopback (127.77.0.N), where a shaper stands in front of both of its ports.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from hyperlane.cluster.announce import Child, ChildFailed
from hyperlane.cluster.worker_client import WorkerClient
from hyperlane.core import Address, HeadId
from hyperlane.errors import HyperlaneError
from hyperlane.testing.chaos.audit import levels
from hyperlane.testing.chaos.outcome import WorkersAtRest
from hyperlane.testing.chaos.schedule import Fault, Kind
from hyperlane.testing.shaper import Shaper

END_WITHIN_S = 15.0
LOOK_S = 0.05
GONE_S = 0.5
"""Connections and threads of what has ended go in their own time."""

PORTS = (20000, 30000)
"""Below those that systems give to outgoing connections: a worker must find its two ports free again."""


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """What computes. `step_ms`, `load_ms`: of the toy. `threads` of each; `memory`: bytes each may use, 0: all free."""

    engine: str = "toy"
    memory: int = 0
    step_ms: float = 4.0
    load_ms: float = 200.0
    threads: int = 1

    def command(self, listen: Address, loading: Path) -> list[str]:
        """The command line of one. `loading`: a file that is there while it loads."""
        words = [sys.executable, "-m", "hyperlane.testing.chaos.worker", "--engine", self.engine, "--announce"]
        words += ["--step-ms", str(self.step_ms), "--load-ms", str(self.load_ms)]
        words += ["--listen", str(listen), "--threads", str(self.threads), "--loading", str(loading)]
        return [*words, "--memory", str(self.memory)] if self.memory else words


class Cabled:
    """One worker and its cable."""

    def __init__(self, number: int, kind: WorkerKind, folder: Path, environ: Mapping[str, str]) -> None:
        self._kind = kind
        self._folder = folder
        self._environ = dict(environ)
        self._number, self.starts = number, 0
        port = free_ports(2)
        here = f"127.77.0.{number + 1}"
        self._listen = Address("127.0.0.1", port)
        self.address = Address(here, port)
        """Of its control port, in front of the cable."""
        ends = (Address("127.0.0.1", port), Address("127.0.0.1", port + 1))
        self._loading = folder / f"worker-{number}.loading"
        self._cables = [Shaper(end, listen=Address(here, end.port)) for end in ends]
        self._child: Child | None = None
        self._is_up = False
        self.start()

    @property
    def process(self) -> psutil.Process | None:
        """It, while it runs."""
        if self._child is None or self._child.ended:
            return None
        return psutil.Process(self._child.pid)

    @property
    def is_up(self) -> bool:
        """Whether it runs, and takes signals."""
        if not self._is_up and self._child is not None:
            with suppress(ChildFailed):
                self._child.announcement(time.monotonic())
                self._is_up = True
        return self._is_up and self.process is not None

    @property
    def is_loading(self) -> bool:
        """Whether it is loading a stage."""
        return self._loading.exists()

    def start(self) -> None:
        """Start it, at the ports that it always has. Does not wait."""
        if self._child is not None:
            self._child.kill()
        log = self._folder / f"worker-{self._number}-{self.starts}.log"
        self.starts += 1
        self._is_up = False
        self._loading.unlink(missing_ok=True)
        self._child = Child(self._kind.command(self._listen, self._loading), log, self._environ)

    def inflict(self, fault: Fault) -> None:
        """Let it happen; `restore` ends it."""
        process = self.process
        if fault.kind is Kind.CUT:
            for cable in self._cables:
                cable.cut()
        elif fault.kind is Kind.RESET:
            for cable in self._cables:
                cable.reset()
        elif process is not None:
            process.send_signal(SIGNALS[fault.kind])

    def restore(self, fault: Fault) -> bool:
        """End it; whether that could be done already: one that leaves takes its time."""
        if fault.kind is Kind.CUT:
            for cable in self._cables:
                cable.heal()
        elif fault.kind is Kind.HANG:
            if fault.wakes and self.process is not None:
                self.process.resume()
            else:
                self.start()
        elif fault.kind in (Kind.KILL, Kind.LEAVE):
            if self.process is not None:
                return False
            self.start()
        return True

    def close(self) -> None:
        """End it all."""
        if self._child is not None:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(self._child.pid).resume()
            self._child.stop(time.monotonic() + END_WITHIN_S)
        for cable in self._cables:
            cable.close()


SIGNALS = {
    Kind.KILL: signal.SIGKILL,
    Kind.HANG: signal.SIGSTOP,
    Kind.MEMORY: signal.SIGUSR1,
    Kind.ENGINE: signal.SIGUSR2,
    Kind.LEAVE: signal.SIGTERM,
}


class ChaosWorkers:
    """All workers of a run, and the faults that are not over."""

    def __init__(self, count: int, kind: WorkerKind, folder: Path, environ: Mapping[str, str] = os.environ) -> None:
        """Start them. Does not wait."""
        self.all = [Cabled(number, kind, folder, environ) for number in range(count)]
        self._open: list[tuple[float, Cabled, Fault]] = []

    def sound(self) -> list[Cabled]:
        """Those that nothing was done to, or no more."""
        hurt = [worker for _, worker, _ in self._open]
        return [worker for worker in self.all if worker not in hurt and worker.is_up]

    def loading(self) -> list[Cabled]:
        """Those that load a stage now."""
        return [worker for worker in self.all if worker.is_loading]

    def at_rest(self, within_s: float) -> WorkersAtRest:
        """What each process holds once no head has anything there; waited for so long."""
        busy = asyncio.run(_busy([worker.address for worker in self.all], time.monotonic() + within_s))
        time.sleep(GONE_S)
        processes = [process for worker in self.all if (process := worker.process) is not None]
        return WorkersAtRest(levels(processes), tuple(map(str, busy)))

    def inflict(self, worker: Cabled, fault: Fault) -> None:
        """Let a fault happen to one; `tend` ends it in time."""
        worker.inflict(fault)
        self._open.append((time.monotonic() + fault.lasts_s, worker, fault))

    def tend(self, *, everything: bool = False) -> bool:
        """End what has lasted long enough, or everything; whether nothing is left."""
        now_s = time.monotonic()
        self._open = [one for one in self._open if not ((everything or one[0] <= now_s) and one[1].restore(one[2]))]
        return not self._open

    def find(self, places: Sequence[str]) -> list[Cabled]:
        """Those at these addresses of control ports, as they are written."""
        return [worker for worker in self.all if str(worker.address) in places]

    def close(self) -> None:
        """End them all."""
        for worker in self.all:
            worker.close()


async def _busy(addresses: Sequence[Address], until_s: float) -> list[Address]:
    """Workers that do not answer in time, or at which a head has something then, slots and weights among it."""
    clients = [WorkerClient(address) for address in addresses]
    try:
        while (busy := [client for client in clients if not await _is_free(client)]) and time.monotonic() < until_s:
            await asyncio.sleep(LOOK_S)
        return [client.address for client in busy]
    finally:
        for client in clients:
            await client.close()


async def _is_free(client: WorkerClient) -> bool:
    """Whether it answers, and no head holds it."""
    try:
        health = await client.health(HeadId(os.urandom(16)))
    except HyperlaneError:
        return False
    return health.lease_s == 0 and not health.stages


_given: set[int] = set()
"""Ports that were given out: whoever has them may not listen yet."""


def free_ports(count: int) -> int:
    """The first of so many neighbouring ports that are free now, and that nobody else here was given."""
    while True:
        first = random.randrange(PORTS[0], PORTS[1] - count)
        if not _given.isdisjoint(range(first, first + count)):
            continue
        try:
            for port in range(first, first + count):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        _given.update(range(first, first + count))
        return first
