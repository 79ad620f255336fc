"""How far each worker's layers may reach: from bytes or seconds and their caps to windows of layers. Pure arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from hyperlane.cluster.planner.layout import Layout, Share

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
SLACK = 1e-12
"""Sums of the same terms in another order differ by less than this, relatively."""


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """What n workers can hold of L layers.

    `begin` int64[n, L + 1]: the first layer l with which a middle stage may begin that ends at l′; l′ or more: none.
    `first_end` int64[n]: where the first stage ends at most, 0: nowhere, less than L. `last_begin` int64[n]: where the
    last stage begins at least, L: nowhere, more than 0. `alone` bool[n]: whether the whole model fits.
    """

    begin: Integers
    first_end: Integers
    last_begin: Integers
    alone: npt.NDArray[np.bool_]

    def __and__(self, other: Self) -> Self:
        """What both allow."""
        return type(self)(
            np.maximum(self.begin, other.begin),
            np.minimum(self.first_end, other.first_end),
            np.maximum(self.last_begin, other.last_begin),
            self.alone & other.alone,
        )

    def on(self, workers: Integers) -> Self:
        """The same for some of the workers."""
        return type(self)(self.begin[workers], self.first_end[workers], self.last_begin[workers], self.alone[workers])


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """What stages use of something (bytes, or seconds of a round) on n workers; L layers.

    `layers` float64[n, L + 1]: of the first l layers. `stage`, `embed`, `project` float64[n]: of any stage besides,
    of the first one, of the last one.
    """

    layers: Numbers
    stage: Numbers
    embed: Numbers
    project: Numbers

    @property
    def count(self) -> int:
        """How many layers there are."""
        return int(self.layers.shape[1]) - 1

    def of(self, share: Share) -> float:
        """What one stage uses."""
        worker, mine = share.worker, share.layers
        used = self.layers[worker, mine.last] - self.layers[worker, mine.first] + self.stage[worker]
        used += self.embed[worker] if mine.first == 0 else 0.0
        used += self.project[worker] if mine.last == self.count else 0.0
        return float(used)

    def most(self, layout: Layout) -> float:
        """The largest use among the stages."""
        return max(self.of(share) for share in layout)

    def within(self, caps: Numbers) -> Windows:
        """The windows in which a stage on worker k uses at most `caps[k]`."""
        room = caps * (1 + SLACK) - self.stage
        every, last = np.arange(self.count + 1), self.count
        begin = np.array([_first(row, row - left) for row, left in zip(self.layers, room, strict=True)])
        begin = np.where((room < 0)[:, None], every, begin)
        first_end = [_end(row, left) for row, left in zip(self.layers, room - self.embed, strict=True)]
        ends = self.layers[:, last]
        closing = zip(self.layers, room - self.project, strict=True)
        last_begin = [int(_first(row, row[last:] - left)[0]) for row, left in closing]
        return Windows(
            begin,
            np.clip(first_end, 0, last - 1),
            np.clip(last_begin, 1, last),
            ends <= room - self.embed - self.project,
        )

    def on(self, workers: Integers) -> Self:
        """The same for some of the workers."""
        return type(self)(self.layers[workers], self.stage[workers], self.embed[workers], self.project[workers])

    def with_worker(self, layers: Numbers, stage: float, embed: float, project: float) -> Self:
        """The same with one more worker."""
        return type(self)(
            np.vstack((self.layers, layers)),
            np.append(self.stage, stage),
            np.append(self.embed, embed),
            np.append(self.project, project),
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.layers + other.layers, self.stage + other.stage, self.embed + other.embed, self.project + other.project
        )

    def times(self, factor: float) -> Self:
        """The same, `factor` times."""
        return type(self)(self.layers * factor, self.stage * factor, self.embed * factor, self.project * factor)


def _first(row: Numbers, wanted: Numbers) -> Integers:
    """The first index at which an ascending row reaches each wanted value; its length if it does not."""
    return np.asarray(np.searchsorted(row, wanted, side="left"), np.int64)


def _end(row: Numbers, room: float) -> int:
    """The last index at which an ascending row is within `room`; 0 if it is nowhere."""
    return max(0, int(np.searchsorted(row, room, side="right")) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """A limit that several workers have together: the sum of `weights[k]` × use on worker k is at most `limit`."""

    use: Use
    limit: float
    weights: tuple[tuple[int, float], ...]

    def by_worker(self, layout: Layout) -> dict[int, float]:
        """What each member's stage takes of the limit."""
        weights = dict(self.weights)
        return {s.worker: weights[s.worker] * self.use.of(s) for s in layout if s.worker in weights}

    def used(self, layout: Layout) -> float:
        """What the stages take of the limit together."""
        return sum(self.by_worker(layout).values())

    def is_kept(self, layout: Layout) -> bool:
        """Whether the stages stay within the limit together."""
        return self.used(layout) <= self.limit * (1 + SLACK)

    def weighted(self) -> Use:
        """The use that counts: nothing on workers that are no members."""
        factors = np.zeros(len(self.use.stage))
        for worker, weight in self.weights:
            factors[worker] = weight
        use = self.use
        return Use(use.layers * factors[:, None], use.stage * factors, use.embed * factors, use.project * factors)


@dataclass(frozen=True, slots=True, eq=False)
class Budget:
    """A use with the cap of each worker, and the limits that some have together."""

    use: Use
    caps: Numbers
    shared: Sequence[Shared] = ()
