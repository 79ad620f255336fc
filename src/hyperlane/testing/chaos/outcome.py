"""What a run found, and what of it must not be. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperlane.testing.chaos.audit import HEAD_MAY, Allowance, Level, grown, most
from hyperlane.testing.chaos.load import Tally
from hyperlane.testing.chaos.schedule import Fault


@dataclass(frozen=True, slots=True)
class Record:
    """A fault, how many requests were under way, the longest time that a stream stood still around it, seconds.

    `hit`: it happened to a worker of the running plan, or to one that was loading a stage. `settled_s`: until all that
    was asked moved, or had ended. What the whole machine stood still is in neither.
    """

    fault: Fault
    live: int
    hit: bool
    gap_s: float
    settled_s: float


@dataclass(frozen=True, slots=True)
class WorkersAtRest:
    """What each worker process holds while no head has anything there, by its number. `busy`: those that are not free.

    A process that hands back everything is compared with itself, one that was started meanwhile with the most that any
    had before.
    """

    levels: Mapping[int, Level]
    busy: Sequence[str] = ()

    def problems(self, before: WorkersAtRest, may: Allowance) -> list[str]:
        """What is held more than before and than may be, and whoever is not free."""
        found = [f"{name} does not answer, or works for a head that has ended" for name in self.busy]
        usual = most(before.levels.values())
        for pid, level in self.levels.items():
            found += grown(f"worker process {pid}", before.levels.get(pid, usual), level, may)
        return found


@dataclass(slots=True)
class Outcome:
    """What a run found. `before`, `after`: what the head held while nothing ran; `workers`: the same of the workers.

    `worker_may`: what each worker may hold more afterwards. `stood_still_s`: how long nothing on this machine moved.
    """

    records: list[Record]
    tally: Tally
    hung: list[str]
    before: Level
    after: Level
    status: dict[str, Any]
    workers: tuple[WorkersAtRest, WorkersAtRest]
    worker_may: Allowance
    left: list[str] = field(default_factory=list)
    stood_still_s: float = 0.0

    def problems(self) -> list[str]:
        """What must not be; empty if all is well."""
        tally = self.tally
        found = [*tally.wrong, *tally.failed, *(f"{name} hangs" for name in self.hung), *self.left]
        if tally.sent != tally.ended:
            found.append(f"{tally.sent} requests were sent, {tally.ended} ended")
        admitted, ended = self.status["requests_admitted"], self.status["requests_ended"]
        if admitted != ended or self.status["active"] or self.status["queued"]:
            found.append(f"the head admitted {admitted} and ended {ended}; {self.status['active']} hold a slot")
        found += grown("the head", self.before, self.after, HEAD_MAY)
        return found + self.workers[1].problems(self.workers[0], self.worker_may)
