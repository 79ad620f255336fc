"""One run: a head and workers as processes, load, faults by a schedule, and what was found at the end.

`hyperlane serve` itself is the head. What counts as wrong is decided in `Outcome.problems`.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from hyperlane.testing.chaos.audit import Level, levels
from hyperlane.testing.chaos.cluster import Cabled, ChaosWorkers, WorkerKind
from hyperlane.testing.chaos.load import Load, Pause, Tally
from hyperlane.testing.chaos.schedule import DEADLY, Fault, Kind, Moment
from hyperlane.testing.program import Program
from hyperlane.testing.toy_cluster import children

WITHIN_S = 180.0
"""How long anything may take before it counts as stuck."""

LOOK_S = 0.01
ON_ITS_WAY_S = 0.1
"""What clients get so soon after a fault had left before it."""

MORE_FILES, MORE_THREADS, MORE_MEMORY = 6, 10, 48 << 20
"""What a head may hold more at the end than at the beginning: pools of threads fill up, and memory in use is not all
given back at once. A leak of one handle a fault, or of a request's text, is far beyond."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Where it happens. `wire`: as `--wire`; `slots` of a pipeline; `context`: tokens of one; `clients` at once."""

    model: str
    workers: int = 4
    kind: WorkerKind = field(default_factory=WorkerKind)
    wire: str = "raw"
    clients: int = 4
    slots: int = 4
    context: int = 1024

    @property
    def is_exact(self) -> bool:
        """Whether answers must be the undisturbed ones: the toy model's state crosses packed links unharmed."""
        return self.wire == "raw" or self.kind.engine == "toy"


@dataclass(frozen=True, slots=True)
class Record:
    """A fault, how many requests were under way, the longest time that a stream stood still around it, seconds.

    `hit`: it happened to a worker of the running plan. `settled_s`: until all that was asked moved, or had ended.
    """

    fault: Fault
    live: int
    hit: bool
    gap_s: float
    settled_s: float


@dataclass(slots=True)
class Outcome:
    """What a run found. `before`, `after`: what the head held while nothing ran."""

    records: list[Record]
    tally: Tally
    hung: list[str]
    before: Level
    after: Level
    status: dict[str, Any]
    left: list[str]

    def problems(self) -> list[str]:
        """What must not be; empty if all is well."""
        tally, before, after = self.tally, self.before, self.after
        found = [*tally.wrong, *tally.failed, *(f"{name} hangs" for name in self.hung), *self.left]
        if tally.sent != tally.ended:
            found.append(f"{tally.sent} requests were sent, {tally.ended} ended")
        admitted, ended = self.status["requests_admitted"], self.status["requests_ended"]
        if admitted != ended or self.status["active"] or self.status["queued"]:
            found.append(f"the head admitted {admitted} and ended {ended}; {self.status['active']} hold a slot")
        for name, more in (("threads", MORE_THREADS), ("files", MORE_FILES), ("sockets", MORE_FILES)):
            grown = getattr(after, name) - getattr(before, name)
            if grown > more:
                found.append(f"the head has {grown} more {name}: {before} -> {after}")
        if after.memory - before.memory > MORE_MEMORY:
            found.append(f"the head has {(after.memory - before.memory) >> 20} MiB more: {before} -> {after}")
        if after.children > before.children:
            found.append(f"the head left {after.children} child processes")
        return found


class Struck(NamedTuple):
    """The worker that a fault happens to, if one is sound, and whether the running plan has it."""

    worker: Cabled | None
    hit: bool


class Running:
    """A head with its workers and their load, as long as the block of `running` lasts."""

    def __init__(self, head: Program, url: str, workers: ChaosWorkers, load: Load) -> None:
        self._head = head
        self.url = url
        self.workers = workers
        self.load = load
        self.spared: list[Cabled] = []
        """Workers whose process no fault ends."""

    def status(self) -> dict[str, Any]:
        """What the head says of itself."""
        said: dict[str, Any] = httpx.get(f"{self.url}/status", timeout=WITHIN_S).raise_for_status().json()
        return said

    def places(self) -> list[str]:
        """Control addresses of the plan's workers, in the order of the stages."""
        stages = self.status()["plan"]["stages"]
        return ["{host}:{port}".format(**stage["worker"]["control"]) for stage in stages]

    def head_level(self) -> Level:
        """What the head's process holds."""
        return levels([psutil.Process(self._head.pid)])[self._head.pid]

    def processes(self) -> dict[str, psutil.Process]:
        """By their names, those that run now."""
        found = {"head": psutil.Process(self._head.pid)}
        for number, worker in enumerate(self.workers.all):
            if (process := worker.process) is not None:
                found[f"worker {number}"] = process
        return found

    def strike(self, fault: Fault) -> tuple[Struck, float]:
        """Wait for a fault's moment and let it happen; where it did, if anywhere, and when (monotonic)."""
        if fault.moment is Moment.LOADING:
            self._begin_loading(fault)
        elif fault.moment is Moment.IDLE:
            self.load.pause()
        else:
            has_come = self.load.has_prefill if fault.moment is Moment.PREFILL else self.load.has_decode
            self.until(has_come)
        time.sleep(fault.delay_s if fault.moment is not Moment.PREFILL else 0.0)
        struck = self._choose(fault)
        at_s = time.monotonic()
        if struck.worker is not None:
            self.workers.inflict(struck.worker, fault)
        self.load.go_on()
        return struck, at_s

    def settle(self, hit: Cabled | None, fault: Fault, at_s: float) -> float:
        """Wait until all that was asked when it happened has moved since, or ended; when that was (monotonic)."""
        if fault.kind is Kind.LEAVE and hit is not None:
            # Streams go on while others take over its stages.
            self.until(lambda: hit.process is None)
            at_s = time.monotonic()
        self.until(lambda: self.load.open() > 0)
        asked = self.load.asked()
        self.until(lambda: self.load.have_moved(asked, at_s + ON_ITS_WAY_S))
        return time.monotonic()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait, and end faults whose time is over. Raises TimeoutError."""
        until_s = time.monotonic() + WITHIN_S
        while not condition():
            self.workers.tend()
            if time.monotonic() > until_s:
                raise TimeoutError(f"nothing moves any more:\n{self._head.stderr[-4000:]}")
            time.sleep(LOOK_S)

    def all_sound(self) -> None:
        """Let everything be mended, and wait until all workers are there and the head serves."""
        self.until(lambda: self.workers.tend(everything=True))
        self.until(self.is_ready)

    def is_ready(self) -> bool:
        """Whether a token went through the running plan."""
        try:
            return bool(self.status()["ready"])
        except httpx.HTTPError:
            return False

    def _begin_loading(self, fault: Fault) -> None:
        """Kill a worker of the plan, so that stages are loaded elsewhere."""
        kill = replace(fault, kind=Kind.KILL, where=1 - fault.where, anywhere=False)
        victim = self._choose(kill).worker
        if victim is not None:
            self.workers.inflict(victim, kill)

    def _choose(self, fault: Fault) -> Struck:
        """A sound worker, mostly of the plan."""
        sound = [worker for worker in self.workers.sound() if fault.kind not in DEADLY or worker not in self.spared]
        planned = [worker for worker in self.workers.find(self.places()) if worker in sound]
        may = planned if planned and not fault.anywhere else sound
        worker = may[int(fault.where * len(may)) % len(may)] if may else None
        return Struck(worker, worker in planned)


@contextmanager
def running(scene: Scene, folder: Path) -> Iterator[Running]:
    """Bring it up, and leave nothing behind. `folder`: for everybody's files."""
    with ExitStack() as parts:
        workers = ChaosWorkers(scene.workers, scene.kind, folder, _environ(folder))
        parts.callback(workers.close)
        words = list(itertools.chain.from_iterable(("--worker", str(worker.address)) for worker in workers.all))
        words += ["--port", "0", "--slots", str(scene.slots), "--context", str(scene.context), "--wire", scene.wire]
        words += ["--prefix-cache", "prompts", "--no-join"]
        environ = {"HYPERLANE_SERVE_CONNECT_TIMEOUT_S": str(WITHIN_S)}
        head = parts.enter_context(Program("serve", scene.model, *words, home=folder / "head", environ=environ))
        url = head.wait_for("ready: ").split()[1].removesuffix("/v1")
        load = Load(f"{url}/v1", scene.model, exact=scene.is_exact)
        parts.callback(load.stop)
        yield Running(head, url, workers, load)


def run_chaos(
    scene: Scene,
    faults: Iterable[Fault],
    folder: Path,
    seed: int,
    tell: Callable[[int, Record], None] = lambda _number, _record: None,
) -> Outcome:
    """All faults, one after the other, each told when all streams move again.

    Raises:
        TimeoutError: something hangs.

    """
    ours = set(children())
    with running(scene, folder) as here:
        here.load.learn()
        here.until(here.is_ready)
        before = here.head_level()
        here.load.start(scene.clients, seed)
        records = []
        for number, fault in enumerate(faults):
            records.append(strike_one(here, fault))
            tell(number, records[-1])
        here.all_sound()
        hung = here.load.stop()
        here.until(lambda: here.status()["active"] == 0)
        status, after = here.status(), here.head_level()
    left = [f"{process} was left behind" for process in set(children()) - ours]
    return Outcome(records, here.load.tally, hung, before, after, status, left)


def strike_one(here: Running, fault: Fault) -> Record:
    """Let a fault happen and wait until all streams move again. Raises TimeoutError."""
    live, began = here.load.open(), len(here.load.pauses)
    struck, at_s = here.strike(fault)
    settled_s = here.settle(struck.worker, fault, at_s) - at_s
    return Record(fault, live, struck.hit, _gap_s(here.load.pauses[began:], at_s), settled_s)


def _gap_s(pauses: Iterable[Pause], at_s: float) -> float:
    """The longest pause that the moment lies in, or that began later."""
    return max((pause.ended_s - max(pause.began_s, at_s) for pause in pauses if pause.ended_s > at_s), default=0.0)


def _environ(folder: Path) -> dict[str, str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HYPERLANE_")}
    return {**variables, "HYPERLANE_HOME": str(folder / "workers"), "HYPERLANE_DISCOVERY_MDNS": "no"}
