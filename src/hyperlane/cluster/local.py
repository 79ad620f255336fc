"""Worker processes of this machine: started together, found by what they announce, started again, ended together."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hyperlane.cluster.announce import STOP_WITHIN_S, Announcement, Child, ChildFailed
from hyperlane.cluster.devices.restarts import DEATHS, DEATHS_WITHIN_S, lately
from hyperlane.cluster.trust.opening import PLAIN
from hyperlane.config import Paths
from hyperlane.core import Address
from hyperlane.errors import ClusterError, ConfigError
from hyperlane.wire.sockets import everywhere

log = logging.getLogger(__name__)

READY_WITHIN_S = 60.0
LOGS_KEPT = 20


@dataclass(frozen=True, slots=True)
class LocalWorkerOptions:
    """What a worker of this machine is started with. `memory`: bytes each may use, None: what is free.

    `credentials`: a folder with their certificate, if workers of other machines must reach them.
    """

    threads: int
    device: str
    memory: int | None
    paths: Paths
    credentials: Path | None = None
    command: tuple[str, ...] = (sys.executable, "-m", "hyperlane", "worker")

    def arguments(self) -> list[str]:
        """The whole command line."""
        listen = Address(everywhere() if self.credentials else "127.0.0.1", 0)
        flags = ["--listen", str(listen), "--announce", "--threads", str(self.threads), "--device", self.device]
        if self.memory is not None:
            flags += ["--memory", str(self.memory)]
        return [*self.command, *flags]

    def environ(self) -> dict[str, str]:
        """This process's variables, with its directories."""
        places = {"HYPERLANE_PATHS_CACHE": str(self.paths.cache), "HYPERLANE_PATHS_STATE": str(self.paths.state)}
        return {**os.environ, **places, "HYPERLANE_WORKER_CREDENTIALS": str(self.credentials or PLAIN)}


class LocalWorkers:
    """Worker processes, one for each of the options; `close` ends them, also what never came up. For any thread."""

    def __init__(self, options: Sequence[LocalWorkerOptions]) -> None:
        """Start them all; `addresses` waits until they are ready."""
        for folder in {one.paths.state / "logs" for one in options}:
            prune_logs(folder)
        self._options = tuple(options)
        self._guard = threading.Lock()
        self._started = 0
        self._children = [self._start(one) for one in options]
        self._addresses: list[Address] = []
        self._starting: list[Child] = []
        self._deaths: tuple[float, ...] = ()
        self._let_be = False

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._options)

    def addresses(self, within_s: float = READY_WITHIN_S) -> Sequence[Address]:
        """Wait until all are ready; their control addresses, in the order in which they were started.

        Raises:
            ClusterError: one ended or did not get ready; the message has its last words.

        """
        deadline_s = time.monotonic() + within_s
        found = []
        for index, child in enumerate(self._children):
            try:
                found.append(_here(child.announcement(deadline_s)))
            except ChildFailed as error:
                raise ClusterError(f"local worker {index} {error}") from error
        self._addresses = found
        return list(found)

    def named(self, layers: Sequence[str]) -> tuple[str, ...]:
        """Each `NODE=a:b` with a worker's address in place of `local0`, `local1`, …; after `addresses`.

        Raises:
            ConfigError: there are not so many.

        """
        return tuple(self._named(text) for text in layers)

    def _named(self, layers: str) -> str:
        match = re.fullmatch(r"\s*local(\d+)\s*(=.*)", layers)
        if match is None:
            return layers
        if int(match[1]) >= len(self._addresses):
            count = len(self._addresses)
            raise ConfigError(f"--layers {layers}: this machine has {count} worker(s) of its own, counted from local0")
        return f"{self._addresses[int(match[1])]}{match[2]}"

    def start_again(self, missing: Collection[Address]) -> list[tuple[Address, Address | None]]:
        """Replace the workers that ended, and kill and replace those of `missing`, which do not answer.

        Waits until the new ones are ready. Returns the old address of each and the new one; None where it did not come
        up, or was not tried, because they die too often.
        """
        with self._guard:
            dead = [i for i, child in enumerate(self._children) if child.ended or self._addresses[i] in missing]
            if not dead or self._let_be:
                return []
            young = self._replace(dead)
        deadline_s = time.monotonic() + READY_WITHIN_S
        changes: list[tuple[Address, Address | None]] = []
        for index in dead:
            old = self._addresses[index]
            try:
                self._addresses[index] = _here(self._children[index].announcement(deadline_s)) if young else old
            except ChildFailed as error:
                log.warning("local worker %d %s", index, error)
            changes.append((old, self._addresses[index] if self._addresses[index] != old else None))
        with self._guard:
            self._starting = []
        return changes

    def let_be(self) -> None:
        """Start none again; those that are being started end. Does not wait; idempotent."""
        with self._guard:
            self._let_be = True
            for child in self._starting:
                child.ask_to_stop()

    def _replace(self, dead: Sequence[int]) -> bool:
        now_s = time.monotonic()
        self._deaths = (*lately(self._deaths, now_s), *[now_s] * len(dead))
        if len(self._deaths) > DEATHS * len(self._children):  # on average: something is wrong with all of them
            log.error("local workers died %d times within %g s: they stay away", len(self._deaths), DEATHS_WITHIN_S)
            return False
        for index in dead:
            self._children[index].kill()
            self._children[index] = self._start(self._options[index])
        self._starting = [self._children[index] for index in dead]
        return True

    def _start(self, options: LocalWorkerOptions) -> Child:
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{self._started}"
        self._started += 1
        log_file = options.paths.state / "logs" / f"worker-{stamp}.log"
        return Child(options.arguments(), log_file, options.environ())

    def obituary(self, within_s: float = 0.5) -> str:
        """How those ended that did, with their last words; empty when all run.

        Waits a moment: a process's connections break just before it can be seen to have ended.
        """
        deadline_s = time.monotonic() + within_s
        while not any(child.ended for child in self._children) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        lost = [(i, child, how) for i, child in enumerate(self._children) if (how := child.ended)]
        return "\n".join(f"local worker {i} (process {child.pid}) {how}{child.last_words()}" for i, child, how in lost)

    def close(self) -> None:
        """End them all. Idempotent."""
        self.let_be()
        for child in self._children:
            child.ask_to_stop()
        deadline_s = time.monotonic() + STOP_WITHIN_S
        for child in self._children:
            child.stop(deadline_s)


def _here(announcement: Announcement) -> Address:
    return Address("127.0.0.1", announcement.address.port)


def prune_logs(folder: Path) -> None:
    """Remove all but the newest logs of workers that ended badly; those of others are removed at once."""
    logs = sorted(folder.glob("*.log"), key=lambda log: log.name.partition("-")[2])
    for log in logs[:-LOGS_KEPT]:
        with suppress(OSError):  # another head's, in use or removed meanwhile
            log.unlink()
