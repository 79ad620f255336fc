"""Which paths of a cluster there are to measure, and which of them at the same time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

from hyperlane.cluster.machine import is_loopback
from hyperlane.cluster.planner.facts import HEAD
from hyperlane.cluster.profile.messages import PathResult
from hyperlane.core import Address, WorkerFacts

MOST_ADDRESSES = 4
"""Of one worker, that are measured from another one."""

REFERENCE_BYTES = 16 << 10
"""The better of two paths takes less for a frame of so many bytes: one token's hidden state of a wide model."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of paths: a worker, or the head.

    `machine`: ends with the same one disturb each other's measurements. `host`: those with the same one share a
    loopback interface; empty: not known, then the machine says that too.
    """

    name: str
    machine: str
    host: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A path from `source` to `target`. What is measured from the head holds for both ways."""

    source: End
    target: End

    @property
    def is_local(self) -> bool:
        """Whether both ends are on one machine, and reach each other there."""
        if self.source.host and self.target.host:
            return self.source.host == self.target.host
        return self.source.machine == self.target.machine


def pairs_of(head: End, workers: Sequence[End]) -> list[Pair]:
    """From the head to every worker, and from every worker to every other one."""
    return [*(Pair(head, worker) for worker in workers), *(Pair(*pair) for pair in permutations(workers, 2))]


def rounds(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """The pairs in rounds, such that no machine takes part twice in one of them; few rounds."""
    left, found = list(pairs), []
    while left:
        busy: set[str] = set()
        chosen = []
        for pair in left:
            ends = {pair.source.machine, pair.target.machine}
            if not ends & busy:
                busy |= ends
                chosen.append(pair)
        left = [pair for pair in left if pair not in chosen]
        found.append(chosen)
    return found


def machine_of(worker: WorkerFacts) -> str:
    """What workers of one machine have in common; a worker that does not say is alone."""
    return worker.machine or worker.memory_pool.partition("/")[0] or worker.name


def targets(worker: WorkerFacts, *, local: bool) -> tuple[Address, ...]:
    """Where its data port may be reached, from its own machine or from others, the likeliest first."""
    port = worker.data.port
    hosts = [worker.data.host, *worker.hosts]
    if local:
        # A port that listens on every address is on loopback too; one that names its hosts may be on those alone.
        hosts = ["127.0.0.1", *hosts] if worker.hosts or not is_loopback(worker.data.host) else hosts
    else:
        hosts = [host for host in hosts if not is_loopback(host)]
    return tuple(Address(host, port) for host in dict.fromkeys(hosts))[:MOST_ADDRESSES]


def best(results: Iterable[PathResult]) -> PathResult | None:
    """The path that takes least for a token's frame; None when none could be measured."""
    able = [one for one in results if not one.failure]
    return min(able, key=lambda one: one.rtt_s / 2 + REFERENCE_BYTES / one.bytes_per_s, default=None)


def head_end(machine: str, host: str = "") -> End:
    """The head, as an end of paths."""
    return End(HEAD, machine, host)


def worker_end(worker: WorkerFacts) -> End:
    """A worker, as an end of paths."""
    return End(worker.name, machine_of(worker), worker.host)
