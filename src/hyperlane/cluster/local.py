"""Worker processes of this machine: started together, found by what they announce, ended together."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hyperlane.cluster.announce import STOP_WITHIN_S, Announcement, Child, ChildFailed
from hyperlane.cluster.trust.opening import PLAIN
from hyperlane.config import Paths
from hyperlane.core import Address
from hyperlane.errors import ClusterError, ConfigError
from hyperlane.wire.sockets import everywhere

READY_WITHIN_S = 60.0
LOGS_KEPT = 20


@dataclass(frozen=True, slots=True)
class LocalWorkerOptions:
    """What every worker of this machine is started with. `memory`: bytes each may use, None: what is free.

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
    """So many worker processes; `close` ends them all, also those that never came up."""

    def __init__(self, count: int, options: LocalWorkerOptions) -> None:
        """Start them all; `addresses` waits until they are ready."""
        prune_logs(options.paths.state / "logs")
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self._children: list[Child] = []
        self._addresses: list[Address] = []
        for index in range(count):
            log = options.paths.state / "logs" / f"worker-{stamp}-{index}.log"
            self._children.append(Child(options.arguments(), log, options.environ()))

    def addresses(self, within_s: float = READY_WITHIN_S) -> Sequence[Address]:
        """Wait until all are ready; their control addresses, in the order in which they were started.

        Raises:
            ClusterError: one ended or did not get ready; the message has its last words.

        """
        deadline_s = time.monotonic() + within_s
        announcements: list[Announcement] = []
        for index, child in enumerate(self._children):
            try:
                announcements.append(child.announcement(deadline_s))
            except ChildFailed as error:
                raise ClusterError(f"local worker {index} {error}") from error
        self._addresses = [Address("127.0.0.1", announcement.address.port) for announcement in announcements]
        return self._addresses

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
        for child in self._children:
            child.ask_to_stop()
        deadline_s = time.monotonic() + STOP_WITHIN_S
        for child in self._children:
            child.stop(deadline_s)


def prune_logs(folder: Path) -> None:
    """Remove all but the newest logs of workers that ended badly; those of others are removed at once."""
    logs = sorted(folder.glob("*.log"), key=lambda log: log.name.partition("-")[2])
    for log in logs[:-LOGS_KEPT]:
        with suppress(OSError):  # another head's, in use or removed meanwhile
            log.unlink()
