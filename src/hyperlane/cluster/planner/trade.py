"""One order of workers, two sums: for every number of moved layers, the split with the least cost. Pure arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hyperlane.cluster.planner.budget import Integers, Numbers, Use, Windows
from hyperlane.cluster.planner.layout import Layout, layout_of
from hyperlane.cluster.planner.ring_cost import RingCost


@dataclass(frozen=True, slots=True, eq=False)
class Trade:
    """The splits of the layers over `order` within the windows. `moves`: what stages load, in whole layers."""

    order: Sequence[int]
    cost: RingCost
    moves: Use
    windows: Windows

    def splits(self) -> Iterator[Layout]:
        """For each number of moved layers, the fewest first, the split of least cost if there is one."""
        count, head = self.cost.stages.count, len(self.cost.links) - 1
        if len(self.order) < 2 or len(self.order) > count:
            return
        table, choices = self._begun(head), []
        for place in range(1, len(self.order)):
            table, chosen = self._append(table, place)
            choices.append(chosen)
        for moved in np.flatnonzero(np.isfinite(table[count])).tolist():
            yield self._trace(choices, int(moved))

    def _begun(self, head: int) -> Numbers:
        """float64[L + 1, moved + 1]: the first stage alone, by its end and what it moves."""
        worker, count = self.order[0], self.cost.stages.count
        table = np.full((count + 1, self._most + 1), np.inf)
        stages = self.cost.stages
        enter = self.cost.links[head, worker] + stages.stage[worker] + stages.embed[worker]
        for end in range(1, int(self.windows.first_end[worker]) + 1):
            table[end, self._moved(worker, 0, end)] = enter + stages.layers[worker, end]
        return table

    def _append(self, before: Numbers, place: int) -> tuple[Numbers, Integers]:
        """One stage more, and where it begins in each case."""
        count, head, stages = self.cost.stages.count, len(self.cost.links) - 1, self.cost.stages
        previous, worker = self.order[place - 1], self.order[place]
        is_last = place == len(self.order) - 1
        table = np.full_like(before, np.inf)
        chosen = np.zeros(before.shape, np.int64)
        fixed = self.cost.links[previous, worker] + stages.stage[worker]
        fixed += (stages.project[worker] + self.cost.links[worker, head]) if is_last else 0.0
        for end in [count] if is_last else range(1, count):
            first = self.windows.last_begin[worker] if is_last else self.windows.begin[worker, end]
            for begin in range(max(1, int(first)), end):
                moved = self._moved(worker, begin, end)
                grown = before[begin, : self._most + 1 - moved] + (
                    fixed + stages.layers[worker, end] - stages.layers[worker, begin]
                )
                better = grown < table[end, moved:]
                table[end, moved:][better] = grown[better]
                chosen[end, moved:][better] = begin
        return table, chosen

    def _trace(self, choices: Sequence[Integers], moved: int) -> Layout:
        end, found = self.cost.stages.count, []
        for place in range(len(self.order) - 1, 0, -1):
            worker = self.order[place]
            begin = int(choices[place - 1][end, moved])
            found.append((worker, begin, end))
            moved -= self._moved(worker, begin, end)
            end = begin
        return layout_of([(self.order[0], 0, end), *reversed(found)])

    @property
    def _most(self) -> int:
        ends = self.moves.embed.max() + self.moves.project.max()
        return int(self.moves.count + np.ceil(ends)) + 1

    def _moved(self, worker: int, begin: int, end: int) -> int:
        moved = self.moves.layers[worker, end] - self.moves.layers[worker, begin]
        moved += self.moves.embed[worker] if begin == 0 else 0.0
        moved += self.moves.project[worker] if end == self.moves.count else 0.0
        return round(float(moved))
