"""One run: a head and workers as processes, load, faults by a schedule, and what was found at the end.

`hyperlane serve` itself is the head. What counts as wrong is `outcome`'s to say.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from hyperlane.testing.chaos.audit import ENGINE_MAY, WORKER_MAY, Level, levels
from hyperlane.testing.chaos.cluster import Cabled, ChaosWorkers, WorkerKind
from hyperlane.testing.chaos.load import Load, Pause
from hyperlane.testing.chaos.outcome import Outcome, Record, WorkersAtRest
from hyperlane.testing.chaos.room import memory_for
from hyperlane.testing.chaos.schedule import Fault, Kind, Moment
from hyperlane.testing.chaos.standstill import Standstills
from hyperlane.testing.program import Program
from hyperlane.testing.toy_cluster import children

WITHIN_S = 180.0
"""How long anything may take before it counts as stuck."""

LOOK_S = 0.01
ON_ITS_WAY_S = 0.1
"""What clients get so soon after a fault had left before it."""

LOADS_WITHIN_S = 3.0
"""After a worker of the plan was killed, another one begins to load within that, or nobody has to."""

FREE_WITHIN_S = 10.0
"""Workers are free so soon after their head has ended; well within the lease, which would free them as well."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Where it happens. `wire`: as `--wire`; `slots` of a pipeline; `context`: tokens of one; `clients` at once.

    `needed`: of the workers, so many at least hold the model together; 0: they have what memory is free.
    `lasting`: the processes of so many live through all faults, so that what gathers in them is seen at the end.
    """

    model: str
    workers: int = 4
    needed: int = 2
    lasting: int = 1
    kind: WorkerKind = field(default_factory=WorkerKind)
    wire: str = "raw"
    clients: int = 4
    slots: int = 4
    context: int = 1024

    @property
    def is_exact(self) -> bool:
        """Whether answers must be the undisturbed ones: the toy model's state crosses packed links unharmed."""
        return self.wire == "raw" or self.kind.engine == "toy"


class Struck(NamedTuple):
    """The worker that a fault happens to, if one is sound, and whether the running plan, or the next one, has it."""

    worker: Cabled | None
    hit: bool


class Running:
    """A head with its workers and their load, as long as the block of `running` lasts."""

    def __init__(self, scene: Scene, head: Program, url: str, workers: ChaosWorkers, load: Load) -> None:
        self.scene = scene
        self._head = head
        self.url = url
        self.workers = workers
        self.load = load
        self.at_rest = WorkersAtRest({})
        """What the workers held before this head came."""
        self.stood_still = Standstills()
        self._lasting = workers.all[: scene.lasting]

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
        time.sleep(0.0 if fault.moment in (Moment.PREFILL, Moment.LOADING) else fault.delay_s)
        struck = self._choose(fault)
        at_s = time.monotonic()
        if struck.worker is not None:
            self.workers.inflict(struck.worker, fault)
        self.load.go_on()
        return struck, at_s

    def settle(self, hit: Cabled | None, fault: Fault, at_s: float) -> float:
        """Wait until all that was asked when it happened has moved since, or ended; when that was (monotonic)."""
        if fault.kind is Kind.LEAVE and hit is not None:
            # Streams go on while others take over its stages. It may be started again as soon as it has ended.
            starts = hit.starts
            self.until(lambda: hit.process is None or hit.starts > starts)
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

    def end(self) -> WorkersAtRest:
        """End the load's client and the head, as its user would; what the workers hold then."""
        self.load.stop()
        self._head.signal_group(signal.SIGINT)
        self._head.wait()
        return self.workers.at_rest(FREE_WITHIN_S)

    def _begin_loading(self, fault: Fault) -> None:
        """Kill a worker of the plan, and wait until another one loads."""
        kill = replace(fault, kind=Kind.KILL, moment=Moment.DECODE, where=1 - fault.where, anywhere=False)
        victim = self._choose(kill).worker
        if victim is not None:
            self.workers.inflict(victim, kill)
            until_s = time.monotonic() + LOADS_WITHIN_S
            self.until(lambda: bool(self.workers.loading()) or time.monotonic() > until_s)

    def _choose(self, fault: Fault) -> Struck:
        """A sound worker, mostly of the plan; while stages are being loaded one that does so."""
        sound = [worker for worker in self.workers.sound() if not (fault.is_deadly and worker in self._lasting)]
        needed = [worker for worker in self.workers.find(self.places()) if worker in sound]
        if fault.moment is Moment.LOADING:
            loading = [worker for worker in self.workers.loading() if worker in sound]
            needed = loading or needed
        may = needed if needed and not fault.anywhere else sound
        worker = may[int(fault.where * len(may)) % len(may)] if may else None
        return Struck(worker, worker in needed)


@contextmanager
def running(scene: Scene, folder: Path) -> Iterator[Running]:
    """Bring it up, and leave nothing behind. `folder`: for everybody's files.

    Another head has used the workers before: what a process fills once is filled.
    """
    with ExitStack() as parts:
        memory = memory_for(Path(scene.model), scene.needed, scene.slots, scene.context) if scene.needed else 0
        workers = ChaosWorkers(scene.workers, replace(scene.kind, memory=memory), folder, _environ(folder))
        parts.callback(workers.close)
        with _served(scene, workers, folder) as first:
            first.load.learn()
            at_rest = first.end()
        here = parts.enter_context(_served(scene, workers, folder))
        here.at_rest = at_rest
        parts.enter_context(here.stood_still)
        yield here


@contextmanager
def _served(scene: Scene, workers: ChaosWorkers, folder: Path) -> Iterator[Running]:
    """A head over the workers, with its client."""
    words = list(itertools.chain.from_iterable(("--worker", str(worker.address)) for worker in workers.all))
    words += ["--port", "0", "--slots", str(scene.slots), "--context", str(scene.context), "--wire", scene.wire]
    words += ["--prefix-cache", "prompts", "--no-join"]
    environ = {"HYPERLANE_SERVE_CONNECT_TIMEOUT_S": str(WITHIN_S)}
    with Program("serve", scene.model, *words, home=folder / "head", environ=environ) as head:
        url = head.wait_for("ready: ").split()[1].removesuffix("/v1")
        load = Load(f"{url}/v1", scene.model, exact=scene.is_exact)
        try:
            yield Running(scene, head, url, workers, load)
        finally:
            load.stop()


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
        outcome = finish(here, records, before)
    outcome.left = [f"{process} was left behind" for process in set(children()) - ours]
    return outcome


def finish(here: Running, records: list[Record], before: Level) -> Outcome:
    """Let everything be mended, end load and head, and look at what is left. `before`: what the head held.

    Raises:
        TimeoutError: something hangs.

    """
    here.all_sound()
    hung = here.load.stop()
    here.until(lambda: here.status()["active"] == 0)
    status, after, stood_still_s = here.status(), here.head_level(), here.stood_still.total_s
    workers = (here.at_rest, here.end())
    may = WORKER_MAY if here.scene.kind.engine == "toy" else ENGINE_MAY
    return Outcome(records, here.load.tally, hung, before, after, status, workers, may, stood_still_s=stood_still_s)


def strike_one(here: Running, fault: Fault) -> Record:
    """Let a fault happen and wait until all streams move again. Raises TimeoutError."""
    live, began = here.load.open(), len(here.load.pauses)
    struck, at_s = here.strike(fault)
    settled_at_s = here.settle(struck.worker, fault, at_s)
    still = here.stood_still
    settled_s = settled_at_s - at_s - still.within(at_s, settled_at_s)
    return Record(fault, live, struck.hit, _gap_s(here.load.pauses[began:], at_s, still), settled_s)


def _gap_s(pauses: Iterable[Pause], at_s: float, still: Standstills) -> float:
    """The longest pause that the moment lies in, or that began later."""
    spans = [(max(pause.began_s, at_s), pause.ended_s) for pause in pauses if pause.ended_s > at_s]
    return max((ended_s - began_s - still.within(began_s, ended_s) for began_s, ended_s in spans), default=0.0)


def _environ(folder: Path) -> dict[str, str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HYPERLANE_")}
    return {**variables, "HYPERLANE_HOME": str(folder / "workers"), "HYPERLANE_DISCOVERY_MDNS": "no"}
