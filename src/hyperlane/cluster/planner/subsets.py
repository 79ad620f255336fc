"""Every subset of the workers in every order with every split of the layers: the exact search. Pure.

A dynamic programme over (set of workers used, last of them, layers covered), as Held and Karp's for tours with the
layers as a further dimension: what comes after depends on nothing else. `docs/planning.md` has sizes and times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperlane.cluster.planner.budget import Integers, Numbers, Windows
from hyperlane.cluster.planner.layout import Layout, Share, layout_of
from hyperlane.cluster.planner.ring_cost import RingCost
from hyperlane.cluster.planner.step import WindowMinimum


@dataclass(frozen=True, slots=True)
class AllLayouts:
    """The `Ground` of every layout on some of these n workers. Memory: 8 · 2ⁿ · n · (L + 1) bytes."""

    workers: Sequence[int]

    def cheapest(self, cost: RingCost, windows: Windows, size: int | None = None) -> tuple[float, Layout] | None:
        """As `Ground.cheapest`."""
        mine = np.array(self.workers)
        search = _Search(cost.on(mine), windows.on(mine))
        sizes = range(1, min(len(mine), cost.stages.count) + 1)
        if size is not None and size not in sizes:
            return None
        search.run(size or sizes[-1])
        found = search.best([size] if size else list(sizes))
        return found and (found[0], tuple(Share(self.workers[share.worker], share.layers) for share in found[1]))


class _Search:
    """One run. `table[set, last, l]`: least cost of a begun ring; `ends[set, last]`: of a closed one."""

    def __init__(self, cost: RingCost, windows: Windows) -> None:
        self._n = workers = len(windows.alone)
        self._count = cost.stages.count
        self._cost, self._windows = cost, windows
        self._table: Numbers = np.full((1 << workers, workers, self._count + 1), np.inf)
        self._ends: Numbers = np.full((1 << workers, workers), np.inf)
        self._sizes = np.bitwise_count(np.arange(1 << workers))
        self._minima = [WindowMinimum(begin) for begin in windows.begin]

    def run(self, size: int) -> None:
        """Fill in all sets of at most `size` workers."""
        for worker in range(self._n):
            self._begin(worker)
        for used in range(1, size):
            sets = np.flatnonzero(self._sizes == used)
            for worker in range(self._n):
                before = sets[(sets >> worker) & 1 == 0]
                self._append(before, worker, keep=used + 1 < size)

    def best(self, sizes: list[int]) -> tuple[float, Layout] | None:
        """The least closed ring with one of these numbers of stages."""
        ends = np.where(np.isin(self._sizes, sizes)[:, None], self._ends, np.inf)
        place = int(ends.argmin())
        least = float(ends.flat[place])
        return (least, self._trace(*divmod(place, self._n))) if np.isfinite(least) else None

    def _begin(self, worker: int) -> None:
        stages, links, alone = self._cost.stages, self._cost.links, 1 << worker
        enter = links[self._n, worker] + stages.stage[worker] + stages.embed[worker]
        end = self._windows.first_end[worker] + 1
        self._table[alone, worker, 1:end] = enter + stages.layers[worker, 1:end]
        if self._windows.alone[worker]:
            leave = stages.project[worker] + links[worker, self._n]
            self._ends[alone, worker] = enter + stages.layers[worker, self._count] + leave

    def _append(self, before: Integers, worker: int, *, keep: bool) -> None:
        """Let `worker` follow on every layout over the sets `before`, which are without it."""
        base = self._joined(before, worker)
        after, stages = before | (1 << worker), self._cost.stages
        if keep:
            grown = self._minima[worker].of(base) + (stages.stage[worker] + stages.layers[worker])
            self._table[after, worker] = grown
        begin = self._windows.last_begin[worker]
        least = base[:, begin : self._count].min(axis=1, initial=np.inf)
        self._ends[after, worker] = least + self._closing(worker)

    def _joined(self, before: Integers, worker: int) -> Numbers:
        """float64[sets, L + 1]: least cost up to and with the link to `worker`, less its own first layers' cost."""
        hops = self._cost.links[: self._n, worker]
        least: Numbers = np.full((len(before), self._count + 1), np.inf)
        for last in np.flatnonzero(np.isfinite(hops)):
            np.minimum(least, self._table[before, last] + hops[last], out=least)
        least -= self._cost.stages.layers[worker]
        return least

    def _closing(self, worker: int) -> float:
        stages = self._cost.stages
        own = stages.stage[worker] + stages.layers[worker, self._count] + stages.project[worker]
        return float(own + self._cost.links[worker, self._n])

    def _trace(self, used: int, worker: int) -> Layout:
        """The layout behind a closed ring's least cost, from its last stage to its first."""
        end, found = self._count, []
        while used != 1 << worker:
            used ^= 1 << worker
            before = np.array([used])
            base = self._joined(before, worker)[0]
            begins = self._windows.last_begin[worker] if end == self._count else self._windows.begin[worker, end]
            begin = int(begins + base[begins:end].argmin())
            found.append((worker, begin, end))
            links = self._table[used, :, begin] + self._cost.links[: self._n, worker]
            worker, end = int(links.argmin()), begin
        return layout_of([(worker, 0, end), *reversed(found)])
