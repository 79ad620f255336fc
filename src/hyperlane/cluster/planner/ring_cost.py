"""The sum that a search makes least: what every stage and every link of a ring adds to it. Pure arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from hyperlane.cluster.planner.budget import Integers, Numbers, Shared, Use, Windows
from hyperlane.cluster.planner.layout import Layout, links_of


@dataclass(frozen=True, slots=True, eq=False)
class RingCost:
    """`stages`: of each stage; `links` float64[n + 1, n + 1]: from i to j, n is the head, infinite where there is none.

    The head's own part is in the links that leave it.
    """

    stages: Use
    links: Numbers

    def of(self, layout: Layout) -> float:
        """The sum for one layout."""
        links = sum(float(self.links[link]) for link in links_of(layout, len(self.links) - 1))
        return links + sum(self.stages.of(share) for share in layout)

    def plus(self, other: Self, weight: float) -> Self:
        """This sum and `weight` times the other."""
        return type(self)(self.stages + other.stages.times(weight), self.links + weight * other.links)

    def on(self, workers: Integers) -> Self:
        """The same for some of the workers."""
        ends = np.append(workers, len(self.links) - 1)
        return type(self)(self.stages.on(workers), self.links[np.ix_(ends, ends)])

    def priced(self, limit: Shared, price: float) -> Self:
        """This sum and a price for what is used of a shared limit."""
        return type(self)(self.stages + limit.weighted().times(price), self.links)

    def only(self, limit: Shared) -> Self:
        """What is used of a shared limit alone, over the same links."""
        return type(self)(limit.weighted(), np.where(np.isfinite(self.links), 0.0, np.inf))

    def without(self, links: np.typing.NDArray[np.bool_]) -> Self:
        """The same with some links forbidden."""
        return type(self)(self.stages, np.where(links, np.inf, self.links))


class Ground(Protocol):
    """Among which layouts is searched."""

    def cheapest(self, cost: RingCost, windows: Windows, size: int | None = None) -> tuple[float, Layout] | None:
        """The layout of least cost within the windows, of `size` stages if given; None if there is none."""
        ...
