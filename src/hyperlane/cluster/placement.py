"""Which layers go where: contiguous ranges in proportion to free memory. Pure; a `core.Planner`.

Counts weights, KV arena and workspace; knows no speed, which the measuring planner will.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from hyperlane.core import LayerRange, ModelFacts, Plan, Precision, StageCost, StagePlan, WorkerFacts, holds_twice
from hyperlane.errors import DoesNotFit

MIN_CONTEXT = 16


class ProportionalPlanner:
    """Keeps the workers in the order given; leaves out only those that cannot hold a single layer."""

    def plan(
        self, model: ModelFacts, workers: Sequence[WorkerFacts], cost: StageCost, slots: int, context: int
    ) -> Plan:
        """As `core.Planner.plan`. Workers of one memory pool share what is free there."""
        if not workers:
            raise DoesNotFit(
                "there is no worker: name some with --worker HOST:PORT, or start some with --local-workers N"
            )
        free = shares(workers)
        costs = [cost.on(worker.provider) for worker in workers]
        placement = place(costs, free)
        if placement is None:
            raise DoesNotFit(_Refusal(model, workers, cost, slots, context).text())
        stages = tuple(
            _stage(index, workers[number], layers, costs[number], free[number])
            for index, (number, layers) in enumerate(placement)
        )
        return Plan(model, stages, slots, context, (Precision.RAW,) * (len(stages) + 1))


def shares(workers: Sequence[WorkerFacts]) -> list[int]:
    """Free bytes of each worker: those that draw on one pool have equal shares of it, within their own limits."""
    pools = Counter(worker.memory_pool for worker in workers if worker.memory_pool)
    return [min(one.memory_free, one.pool_room // pools.get(one.memory_pool, 1)) for one in workers]


def place(costs: Sequence[StageCost], free: Sequence[int]) -> list[tuple[int, LayerRange]] | None:
    """Worker numbers with their layers, in order; None when nothing fits. `costs`: on each worker.

    The widest span of workers that fits is taken: embedding on its first, output on its last.
    """
    spans = ((first, last) for first in range(len(free)) for last in range(first, len(free)))
    for first, last in sorted(spans, key=lambda span: (span[0] - span[1], span[0])):
        bounds = _Span(costs[first : last + 1], free[first : last + 1]).bounds()
        if bounds is not None:
            ranges = (LayerRange(begin, end) for begin, end in zip((0, *bounds), bounds, strict=False))
            return [(first + i, layers) for i, layers in enumerate(ranges) if len(layers)]
    return None


@dataclass(frozen=True, slots=True)
class _Span:
    """Neighbouring workers, all of which take part, save that one in the middle may have no layer."""

    costs: Sequence[StageCost]
    free: Sequence[int]

    def bounds(self) -> list[int] | None:
        """Where each worker's layers end, as near to the proportional place as memory allows; None if none fits."""
        count = len(self.costs[0].layer_weights)
        least = self._least_begins()
        if least is None:
            return None
        rooms = [max(0, self._room(i)) for i in range(len(self.free))]
        targets = [count * part / max(1, sum(rooms)) for part in accumulate(rooms)]
        bounds: list[int] = []
        for i, target in enumerate(targets):
            begin = bounds[-1] if bounds else 0
            most = self._furthest(i, begin)
            if i == len(self.free) - 1:
                return [*bounds, count] if most == count else None
            low = max(begin + (i == 0), least[i + 1])
            high = min(most, count - 1)
            if low > high:
                return None
            bounds.append(min(max(round(target), low), high))
        return None

    def _room(self, i: int) -> int:
        """Bytes of worker i that are left for layers."""
        cost = self.costs[i]
        ends = (cost.embedding if i == 0 else 0) + (cost.output if i == len(self.free) - 1 else 0)
        return self.free[i] - cost.workspace - ends

    def _furthest(self, i: int, begin: int) -> int:
        """Where worker i's layers end at most when they begin there."""
        room, end = self._room(i), begin
        while end < len(self.costs[i].layer_weights) and room >= self._layer(i, end):
            room -= self._layer(i, end)
            end += 1
        return end

    def _least_begins(self) -> list[int] | None:
        """For each worker, the first layer from which on it and those after it can hold all; None if none can."""
        begin, begins = len(self.costs[0].layer_weights), []
        for i in reversed(range(len(self.free))):
            room = self._room(i)
            if room < 0 and i in (0, len(self.free) - 1):
                return None
            while begin > 0 and room >= self._layer(i, begin - 1):
                begin -= 1
                room -= self._layer(i, begin)
            begins.append(begin)
        return begins[::-1] if begin == 0 else None

    def _layer(self, i: int, index: int) -> int:
        return self.costs[i].layer_weights[index] + self.costs[i].kv_per_layer


def _stage(index: int, worker: WorkerFacts, layers: LayerRange, cost: StageCost, free: int) -> StagePlan:
    last, kv = layers.last == len(cost.layer_weights), cost.kv_per_layer * len(layers)
    weights = sum(cost.layer_weights[layers.first : layers.last])
    weights += (cost.embedding if layers.first == 0 else 0) + (cost.output if last else 0)
    copy = cost.copies.of(layers) if cost.copies is not None else 0
    if copy and holds_twice(free, worker.memory_total, weights + copy + kv):
        weights += copy
    return StagePlan(index, worker, layers, weights, kv, cost.workspace)


# --- refusals ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What was asked for and does not fit, put into numbers."""

    model: ModelFacts
    workers: Sequence[WorkerFacts]
    cost: StageCost
    slots: int
    context: int

    def text(self) -> str:
        """Which bytes are missing where, and what would fit."""
        free = shares(self.workers)
        cost = self.cost
        weights = sum(cost.layer_weights) + cost.embedding + cost.output
        kv = cost.kv_per_layer * len(cost.layer_weights)
        needed = weights + kv + cost.workspace * len(self.workers)
        lines = [
            f"{self.model.name} does not fit: it needs {_size(weights)} of weights, {_size(kv)} of KV arena "
            f"({self.slots} slots of {self.context} tokens) and {_size(cost.workspace)} of workspace on each worker, "
            f"{_size(needed)} in all; {_size(sum(free))} are free:",
        ]
        lines += [f"  {w.name} ({w.control}): {_size(n)} free" for w, n in zip(self.workers, free, strict=True)]
        return "\n".join([*lines, f"what would fit: {'; '.join(self._ways_out(free, needed))}"])

    def _ways_out(self, free: Sequence[int], needed: int) -> list[str]:
        ways = []
        if fewer := _largest(self.slots - 1, 1, lambda n: self._fits(free, n, self.slots)):
            ways.append(f"--slots {fewer}")
        if shorter := _largest(self.context - 1, MIN_CONTEXT, lambda n: self._fits(free, n + 1, self.context + 1)):
            ways.append(f"--context {shorter}")
        missing = max(needed - sum(free), max(self.cost.layer_weights) + self.cost.kv_per_layer)
        return [*ways, f"about {_size(missing)} more free memory, or another worker; a smaller model or quantisation"]

    def _fits(self, free: Sequence[int], part: int, whole: int) -> bool:
        """Whether all fits with part / whole of the KV arena."""
        costs = [self.cost.on(worker.provider) for worker in self.workers]
        smaller = [replace(cost, kv_per_layer=-(-cost.kv_per_layer * part // whole)) for cost in costs]
        return place(smaller, free) is not None


def _largest(high: int, low: int, fits: Callable[[int], bool]) -> int:
    """The largest number within low … high that fits, 0 if none does; what fits stays so for smaller ones."""
    if high < low or not fits(low):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:,.0f} MiB"
