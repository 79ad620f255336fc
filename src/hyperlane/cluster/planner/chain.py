"""One order of workers with every split of the layers. Pure; the exact search's step along a single chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperlane.cluster.planner.budget import Numbers, Windows
from hyperlane.cluster.planner.layout import Layout, layout_of
from hyperlane.cluster.planner.ring_cost import RingCost
from hyperlane.cluster.planner.step import WindowMinimum


@dataclass(frozen=True, slots=True)
class OneOrder:
    """The `Ground` of all layouts whose stages are on these workers, in this order."""

    order: Sequence[int]

    def cheapest(self, cost: RingCost, windows: Windows, size: int | None = None) -> tuple[float, Layout] | None:
        """As `Ground.cheapest`."""
        count, stages, head = cost.stages.count, cost.stages, len(cost.links) - 1
        if size not in (None, len(self.order)) or len(self.order) > count:
            return None
        first, *others = self.order
        if not others:
            layout = layout_of([(first, 0, count)])
            return (cost.of(layout), layout) if windows.alone[first] and np.isfinite(cost.of(layout)) else None
        so_far = np.full(count + 1, np.inf)
        end = windows.first_end[first] + 1
        enter = cost.links[head, first] + stages.stage[first] + stages.embed[first]
        so_far[1:end] = enter + stages.layers[first, 1:end]
        rows = []
        for before, worker in zip(self.order, others, strict=False):
            rows.append(so_far + cost.links[before, worker] - stages.layers[worker])
            least = WindowMinimum(windows.begin[worker]).of(rows[-1][None])[0]
            so_far = least + stages.stage[worker] + stages.layers[worker]
        return self._close(cost, windows, rows)

    def _close(self, cost: RingCost, windows: Windows, rows: Sequence[Numbers]) -> tuple[float, Layout] | None:
        """Choose where each stage begins, from the last to the first."""
        end, found = cost.stages.count, []
        begins = windows.last_begin[self.order[-1]]
        for worker, row in zip(reversed(self.order[1:]), reversed(rows), strict=True):
            if begins >= end or not np.isfinite(row[begins:end].min()):
                return None
            begin = int(begins + row[begins:end].argmin())
            found.append((worker, begin, end))
            end = begin
            begins = windows.begin[self.order[len(self.order) - 1 - len(found)], end]
        layout = layout_of([(self.order[0], 0, end), *reversed(found)])
        return cost.of(layout), layout
