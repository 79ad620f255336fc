"""One process above a host's workers: starts one for each device, starts again what dies, passes signals on, ends all.

What the workers say goes to its standard error, each line behind its device. It computes nothing and has no port.
When it dies, whatever the reason, its workers' standard input ends, and they do.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hyperlane.cluster.announce import Announcement, Child, ChildFailed
from hyperlane.cluster.devices.restarts import DEATHS, DEATHS_WITHIN_S, lately, wait_s
from hyperlane.cluster.devices.spots import Spot
from hyperlane.config import Paths
from hyperlane.errors import ClusterError, ConfigError, NotTrusted, RuntimeMissing, UsageError

log = logging.getLogger(__name__)

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 15.0
"""More than a worker takes that was told to stop at once."""

LOOK_EVERY_S = 1.0
"""Where waiting for news cannot be interrupted by a signal (Windows)."""

HOPELESS = (UsageError.exit_code, RuntimeMissing.exit_code, NotTrusted.exit_code)
"""Exit codes of a worker that did not get ready: starting it again would end the same way."""


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """How a device's worker is started. `words`: the command's beginning; `memory`: bytes each may use, if it was told.

    `drain_s`: how long each may take to leave.
    """

    words: tuple[str, ...]
    paths: Paths
    memory: int | None
    drain_s: float

    def arguments(self, spot: Spot) -> list[str]:
        """The whole command line."""
        flags = ["--announce", "--listen", str(spot.listen), "--device", spot.device, "--name", spot.name]
        flags += ["--threads", str(spot.threads)]
        return [*self.words, *flags, *(["--memory", str(self.memory)] if self.memory is not None else [])]

    def environ(self, spot: Spot) -> dict[str, str]:
        """This process's variables; the cache is the host's, the state its own."""
        places = {"HYPERLANE_PATHS_CACHE": str(self.paths.cache), "HYPERLANE_PATHS_STATE": str(spot.state)}
        named = {"HYPERLANE_PATHS_MACHINE": self.paths.machine} if self.paths.machine else {}
        return {**os.environ, **places, **named}


@dataclass(slots=True)
class _Worker:
    """One device's worker. `starts_at_s`: when it is due; None: it runs, or is left. `ready`: since it was started."""

    spot: Spot
    child: Child | None = None
    ready: bool = False
    deaths: tuple[float, ...] = ()
    starts_at_s: float | None = 0.0
    left: str = ""
    exit_code: int | None = None
    is_known: bool = field(default=False)
    """Whether it was ready or left once: until all are, the first start is not over."""


_News = tuple[_Worker, Child, Announcement | str] | int
"""A worker that is ready, or ended in such a way; or a signal's number."""


class Supervisor:
    """The workers of one host. In the main thread, whose signals it takes."""

    def __init__(
        self, spots: Sequence[Spot], command: WorkerCommand, say: Callable[[str], object] | None = None
    ) -> None:
        """`say`: tells people a line; on standard error by default."""
        self._workers = [_Worker(spot) for spot in spots]
        self._command = command
        self._say = say or _say
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._signals: list[int] = []

    def run(self) -> None:
        """Until SIGTERM or SIGINT, after which every worker has its time to leave, and none at a second one.

        Raises:
            ClusterError, ConfigError: no worker is left that could be started again.
            KeyboardInterrupt: SIGINT came, and everything has been stopped.

        """
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self._signals:
                self._start_due()
                self._take_news(self._next_due_s())
                self._check_that_one_is_left()
            self._leave()
        finally:
            self._close()
            for number, handler in before.items():
                signal.signal(number, handler)
        if signal.SIGINT in self._signals:
            raise KeyboardInterrupt

    # --- starting ------------------------------------------------------------------------------------------------

    def _start_due(self) -> None:
        for worker in self._workers:
            if worker.starts_at_s is not None and worker.starts_at_s <= time.monotonic():
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        spot = worker.spot
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{len(worker.deaths)}"
        journal = spot.state / "logs" / f"worker-{stamp}.log"
        worker.child = child = Child(
            self._command.arguments(spot),
            journal,
            self._command.environ(spot),
            lambda line: self._say(f"[{spot.label}] {line}"),
        )
        worker.starts_at_s, worker.ready = None, False
        threading.Thread(target=self._watch, args=(worker, child), name=f"watch-{spot.label}", daemon=True).start()

    def _watch(self, worker: _Worker, child: Child) -> None:
        """In a thread of its own: what becomes of a process."""
        try:
            self._news.put((worker, child, child.announcement(time.monotonic() + READY_WITHIN_S)))
        except ChildFailed as error:
            if child.exit_code is None:
                child.kill()
                self._news.put((worker, child, str(error).partition(";")[0]))
                return
        child.wait()
        self._news.put((worker, child, child.ended or "ended"))

    def _next_due_s(self) -> float:
        due = [worker.starts_at_s for worker in self._workers if worker.starts_at_s is not None]
        return max(0.0, min([LOOK_EVERY_S, *(at_s - time.monotonic() for at_s in due)]))

    # --- what happens --------------------------------------------------------------------------------------------

    def _take_news(self, within_s: float) -> None:
        try:
            news = self._news.get(timeout=within_s)
        except queue.Empty:
            return
        if isinstance(news, int):
            return
        worker, child, what = news
        if child is not worker.child:
            return
        if isinstance(what, Announcement):
            worker.ready = True
            self._say(f"[{worker.spot.label}] worker {what.name} is ready at {what.address} (process {child.pid})")
            self._know(worker)
        else:
            self._ended(worker, child, what)

    def _ended(self, worker: _Worker, child: Child, how: str) -> None:
        now_s = time.monotonic()
        child.stop(now_s)
        hopeless = not worker.ready and child.exit_code in HOPELESS
        wait = None if hopeless else wait_s(worker.deaths, now_s)
        worker.deaths, worker.exit_code = (*lately(worker.deaths, now_s), now_s), child.exit_code
        stage = "" if worker.ready else " before it was ready"
        worker.ready = False
        if self._signals:
            return
        if wait is not None:
            worker.starts_at_s = now_s + wait
            self._say(f"[{worker.spot.label}] the worker {how}{stage}; it is started again in {wait:g} s")
            return
        why = "starting it again would end so too" if hopeless else f"{DEATHS + 1} times within {DEATHS_WITHIN_S:g} s"
        worker.left = f"the worker {how}{stage} ({why})"
        self._say(f"[{worker.spot.label}] {worker.left}: this device stays away, the others serve on")
        self._know(worker)

    def _know(self, worker: _Worker) -> None:
        """Say once how the first start went, when every device is ready or left."""
        told = all(one.is_known for one in self._workers)
        worker.is_known = True
        if not told and all(one.is_known for one in self._workers):
            ready = sum(one.ready for one in self._workers)
            self._say(f"{ready} of {len(self._workers)} devices are ready")

    def _check_that_one_is_left(self) -> None:
        """Raises ClusterError, or ConfigError where all were started wrongly."""
        if not all(worker.left for worker in self._workers):
            return
        text = "\n".join(["no device can be used:", *(f"  {one.spot.label}: {one.left}" for one in self._workers)])
        kind = ConfigError if all(one.exit_code == UsageError.exit_code for one in self._workers) else ClusterError
        raise kind(text)

    # --- ending --------------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signals.append(number)
        self._news.put(number)

    def _leave(self) -> None:
        """Let every worker leave; a further signal is passed on, and means: at once."""
        passed = 0
        until_s = time.monotonic() + self._command.drain_s + STOP_WITHIN_S
        while self._running() and time.monotonic() < until_s:
            if passed < len(self._signals):
                passed = len(self._signals)
                for child in self._running():
                    child.ask_to_leave()
                    if passed > 1:
                        child.ask_to_stop()
                if passed > 1:
                    until_s = min(until_s, time.monotonic() + STOP_WITHIN_S)
            self._take_news(LOOK_EVERY_S)

    def _running(self) -> list[Child]:
        return [one.child for one in self._workers if one.child is not None and one.child.exit_code is None]

    def _close(self) -> None:
        children = [worker.child for worker in self._workers if worker.child is not None]
        for child in children:
            child.ask_to_stop()
        deadline_s = time.monotonic() + STOP_WITHIN_S
        for child in children:
            child.stop(deadline_s)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
