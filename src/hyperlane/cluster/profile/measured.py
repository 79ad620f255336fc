"""What measuring a cluster comes to: facts for the planner, and the addresses that its links should use. Plain data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from hyperlane.cluster.planner.facts import ClusterFacts
from hyperlane.cluster.profile.shape import ProfileShape
from hyperlane.cluster.report import Report
from hyperlane.cluster.worker_client import WorkerClient
from hyperlane.core import Address, WorkerFacts


@dataclass(frozen=True, slots=True)
class Route:
    """Where `source` dials `target`'s data port: the best of the paths between the two. Names as in `PathFacts`."""

    source: str
    target: str
    address: Address


@dataclass(frozen=True, slots=True)
class Measured:
    """Facts for the planner, and the routes that their paths were measured on."""

    facts: ClusterFacts
    routes: tuple[Route, ...]

    def address(self, source: str, target: str) -> Address | None:
        """Where `source` (a worker's name, or `HEAD`) dials the data port of `target`; None: no path was measured.

        The head dials both ends of its ring: the last stage's link to it is its own route to that worker.
        """
        return dialled(self.routes, source, target)


def dialled(routes: Sequence[Route], source: str, target: str) -> Address | None:
    """Where `source` dials `target`; None: no path was measured."""
    found = (route.address for route in routes if (route.source, route.target) == (source, target))
    return next(found, None)


@dataclass(frozen=True, slots=True)
class Node:
    """A worker to be measured: how it is asked, and what it last said of itself."""

    client: WorkerClient
    facts: WorkerFacts


class Measures(Protocol):
    """Measures a cluster; remembers what cannot have changed."""

    async def measure(self, nodes: Sequence[Node], shape: ProfileShape, report: Report) -> Measured:
        """The facts of exactly these workers, in their order. In the event loop that the clients live in.

        Devices that were measured before with this shape, and paths that are young, are not measured again. Workers
        of one machine are measured one after another, and no node takes part in two measurements at once.

        Raises:
            WorkerBusy: a worker that was not measured yet runs stages.
            WorkerUnreachable, VersionMismatch: of the first worker that fails.
            ClusterError: a worker's device cannot compute such a layer.

        """
        ...

    def forget(self, names: Collection[str]) -> None:
        """Measure these workers, and the paths to and from them, anew when they are asked for next."""
        ...

    async def routes(self, nodes: Sequence[Node], report: Report) -> tuple[Route, ...]:
        """The paths alone, as `measure` does them; for a plan that needs no costs. Raises as `measure`."""
        ...
