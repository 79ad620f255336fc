"""A measured cost as a function of size: monotone and piecewise linear. Knows not what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds at some sizes (rows of a batch, tokens of a chunk), ascending.

    A larger size never costs less: where a measurement says so, noise does, and the larger value before it holds.

    Raises:
        ValueError: no point, sizes that do not ascend from 1, or seconds that are negative or not finite.

    """

    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.points]
        if not sizes or sizes[0] < 1 or sizes != sorted(set(sizes)):
            raise ValueError(f"the sizes {sizes} of a cost curve do not ascend from 1 or more")
        if not all(math.isfinite(seconds) and seconds >= 0 for _, seconds in self.points):
            raise ValueError(f"a cost curve has seconds that are negative or not finite: {self.points}")

    @classmethod
    def flat(cls, seconds: float) -> Curve:
        """The same at every size."""
        return cls(((1, seconds), (2, seconds)))

    @classmethod
    def per_unit(cls, seconds: float) -> Curve:
        """Proportional to the size."""
        return cls(((1, seconds), (2, 2 * seconds)))

    def seconds(self, size: float) -> float:
        """What that size costs; nothing at size 0.

        Below the smallest size measured: as much as that. Above the largest: the last slope goes on; a curve of one
        point is taken as proportional there.
        """
        if size <= 0:
            return 0.0
        sizes = [point for point, _ in self.points]
        levels = list(accumulate((seconds for _, seconds in self.points), max))
        if size <= sizes[0]:
            return levels[0]
        if len(sizes) == 1:
            return levels[0] * size / sizes[0]
        upper = next((i for i, point in enumerate(sizes) if point >= size), len(sizes) - 1)
        slope = (levels[upper] - levels[upper - 1]) / (sizes[upper] - sizes[upper - 1])
        return levels[upper - 1] + slope * (size - sizes[upper - 1])
