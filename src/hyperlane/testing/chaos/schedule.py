"""What goes wrong, when, and where: a sequence of faults from a seed. Pure."""

from __future__ import annotations

import enum
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """What happens to a worker."""

    KILL = "kill -9"
    HANG = "hang (SIGSTOP)"
    CUT = "cut cable (silent)"
    RESET = "broken connections"
    MEMORY = "out of memory in a stage"
    ENGINE = "engine exception"
    LEAVE = "clean leave (SIGTERM)"


class Moment(enum.StrEnum):
    """What it happens in the middle of."""

    LOADING = "loading"
    PREFILL = "prefill"
    DECODE = "decode"
    IDLE = "between requests"


@dataclass(frozen=True, slots=True)
class Fault:
    """`where`: which worker, as a share (0 … 1) of those that may be chosen; `anywhere`: not only those of the plan.

    `lasts_s`: until a worker that is gone starts again, one that hangs goes on, a cable is plugged in.
    `wakes`: one that hangs goes on; else it is killed then. `delay_s`: after its moment has come.
    """

    kind: Kind
    moment: Moment
    where: float
    anywhere: bool
    lasts_s: float
    wakes: bool
    delay_s: float

    @property
    def is_deadly(self) -> bool:
        """Whether the process ends by it."""
        return self.kind in (Kind.KILL, Kind.LEAVE) or (self.kind is Kind.HANG and not self.wakes)


def schedule(seed: int, longest_s: float = 3.0) -> Iterator[Fault]:
    """Faults without end: every kind at every moment, in an order of its own each time round, before one comes again.

    `longest_s`: how long one may last.
    """
    rng = random.Random(seed)
    while True:
        round_ = list(itertools.product(Kind, Moment))
        rng.shuffle(round_)
        for kind, moment in round_:
            yield Fault(
                kind,
                moment,
                where=rng.random(),
                anywhere=rng.random() < 0.1,
                lasts_s=rng.uniform(0.1, 1.0) * longest_s,
                wakes=rng.random() < 0.5,
                delay_s=rng.uniform(0.0, 0.2),
            )


def sampler(seed: int, longest_s: float) -> Iterator[Fault]:
    """As `schedule`, but every kind comes once before any comes again: for a run of few faults."""
    faults = schedule(seed, longest_s)
    while True:
        wanted = set(Kind)
        while wanted:
            fault = next(faults)
            if fault.kind in wanted:
                wanted.discard(fault.kind)
                yield fault
