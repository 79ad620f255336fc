"""Why no plan fits, and what would: fewer slots, a shorter context, smaller weights, one more node. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hyperlane.cluster.planner.budget import Budget
from hyperlane.cluster.planner.facts import ClusterFacts, Objective, Workload
from hyperlane.cluster.planner.problem import Problem, memory_budget
from hyperlane.cluster.planner.reach import reach
from hyperlane.cluster.planner.search import best_layout
from hyperlane.core import StageCost
from hyperlane.summary import human_bytes

MIN_CONTEXT = 16
STEP = 64 << 20
"""Bytes in which a further node's memory is named."""

BITS_STEP = 0.25


@dataclass(frozen=True, slots=True)
class Room:
    """What a worker has: bytes that are free, and how many layers they hold beside a stage's workspace."""

    worker: str
    free_bytes: int
    layers: int


@dataclass(frozen=True, slots=True)
class Ways:
    """What would fit, each change alone; None where that alone does not help.

    `slots`, `context`: the most that fit. `weights_share`: at most that part of the weights' present bytes;
    `weight_bits`: that in bits of a weight, if the present bits are known. `node_bytes`: free memory of a further node.
    """

    slots: int | None
    context: int | None
    weights_share: float | None
    weight_bits: float | None
    node_bytes: int | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing fits, in numbers. `held_layers`: how many of the first layers have a place, of `layers`.

    `missing_bytes`: of the layers that have none, and of the output projection if the last stage lacks its place.
    """

    model: str
    layers: int
    held_layers: int
    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int
    missing_bytes: int
    rooms: tuple[Room, ...]
    ways: Ways
    slots: int
    context: int
    nothing_reaches: bool

    def text(self) -> str:
        """For people: which bytes are missing where, and what would fit."""
        needs = (
            f"{human_bytes(self.weight_bytes)} of weights, {human_bytes(self.kv_bytes)} of KV arena "
            f"({self.slots} slots of {self.context} tokens) and {human_bytes(self.workspace_bytes)} of workspace on "
            "each node"
        )
        if self.nothing_reaches:
            return (
                f"{self.model} would fit the memory of its nodes, but no chain of measured links of one precision "
                "joins those that it needs: name the workers that can reach one another"
            )
        if not self.rooms:
            return f"{self.model} needs {needs}, and there is no worker: start one with `hyperlane worker`"
        lines = [
            f"{self.model} does not fit: it needs {needs}. {self.held_layers} of {self.layers} layers have a place, "
            f"{human_bytes(self.missing_bytes)} have none:"
        ]
        lines += [f"  {r.worker}: {human_bytes(r.free_bytes)} free, room for {r.layers} layers" for r in self.rooms]
        return "\n".join([*lines, f"what would fit: {'; '.join(self._ways())}"])

    def _ways(self) -> list[str]:
        ways, found = [], self.ways
        if found.slots is not None:
            ways.append(f"--slots {found.slots}")
        if found.context is not None:
            ways.append(f"--context {found.context}")
        if found.weight_bits is not None:
            ways.append(f"weights of at most {found.weight_bits:g} bits each")
        elif found.weights_share is not None:
            ways.append(f"a quantisation of at most {found.weights_share:.0%} of these weights' bytes")
        if found.node_bytes is not None:
            ways.append(f"one more node with {human_bytes(found.node_bytes)} free")
        return ways or ["a smaller model"]


def refusal_of(problem: Problem) -> Refusal:
    """The refusal of a problem that has no layout that fits."""
    facts, workload, budget = problem.facts, problem.workload, problem.memory
    cost, held = workload.cost, reach(budget) if facts.workers else 0
    weights = sum(cost.layer_weights) + cost.embedding + cost.output
    left = cost.layer_weights[held:]
    return Refusal(
        model=workload.model.name,
        layers=workload.model.layers,
        held_layers=held,
        weight_bytes=weights,
        kv_bytes=cost.kv_per_layer * len(cost.layer_weights),
        workspace_bytes=cost.workspace,
        missing_bytes=sum(left) + cost.kv_per_layer * len(left) + (cost.output if left else 0),
        rooms=_rooms(facts, budget),
        ways=_ways(facts, workload),
        slots=workload.slots,
        context=workload.context,
        nothing_reaches=held == workload.model.layers,
    )


def too_many(problem: Problem, count: int, fitting: int) -> str:
    """Why there are not so many replicas of a model: what one needs, what each node has, and how many there can be."""
    if not fitting:
        return refusal_of(problem).text()
    workload, cost = problem.workload, problem.workload.cost
    needed = sum(cost.layer_weights) + cost.embedding + cost.output + cost.kv_per_layer * len(cost.layer_weights)
    rooms = _rooms(problem.facts, problem.memory)
    free = "; ".join(f"{room.worker}: {human_bytes(room.free_bytes)} free" for room in rooms)
    return (
        f"{count} replicas of {workload.model.name} do not fit these {len(problem.facts.workers)} worker(s), {fitting} "
        f"would: each needs workers of its own with {human_bytes(needed)} together ({workload.slots} slots of "
        f"{workload.context} tokens) and {human_bytes(cost.workspace)} of workspace on each ({free}). Ask for "
        f"--replicas {fitting}, or add workers"
    )


def with_slots(workload: Workload, slots: int) -> Workload:
    """The same with another number of slots; the workspace is left as it was counted."""
    return replace(workload, slots=slots, cost=_with_kv(workload.cost, slots, workload.slots))


def with_context(workload: Workload, context: int) -> Workload:
    """The same with another context; every slot has one position to spare."""
    return replace(workload, context=context, cost=_with_kv(workload.cost, context + 1, workload.context + 1))


def _with_kv(cost: StageCost, part: int, whole: int) -> StageCost:
    """With part / whole of the KV arena."""
    return cost.each(lambda one: replace(one, kv_per_layer=-(-one.kv_per_layer * part // whole)))


def with_weights(workload: Workload, share: float) -> Workload:
    """The same with every weight at a part of its present bytes."""

    def scaled(cost: StageCost) -> StageCost:
        return replace(
            cost,
            layer_weights=tuple(int(share * count) + 1 for count in cost.layer_weights),
            embedding=int(share * cost.embedding) + 1,
            output=int(share * cost.output) + 1,
        )

    return replace(workload, cost=workload.cost.each(scaled))


def _ways(facts: ClusterFacts, workload: Workload) -> Ways:
    def fits(changed: Workload) -> bool:
        return bool(facts.workers) and reach(memory_budget(facts, changed)) == changed.model.layers

    def is_sure(changed: Workload) -> bool:
        return best_layout(Problem(facts, changed), Objective.LATENCY) is not None

    slots = largest(workload.slots - 1, 1, lambda n: fits(with_slots(workload, n)))
    context = largest(workload.context - 1, MIN_CONTEXT, lambda n: fits(with_context(workload, n)))
    percent = largest(99, 1, lambda n: fits(with_weights(workload, n / 100)))
    share = percent / 100 if percent and is_sure(with_weights(workload, percent / 100)) else None
    bits = share and workload.weight_bits * share // BITS_STEP * BITS_STEP
    return Ways(
        slots=slots if slots and is_sure(with_slots(workload, slots)) else None,
        context=context if context and is_sure(with_context(workload, context)) else None,
        weights_share=share,
        weight_bits=bits or None,
        node_bytes=_further_node(memory_budget(facts, workload), workload) if facts.workers else None,
    )


def _further_node(budget: Budget, workload: Workload) -> int | None:
    """The least free memory of one more worker with which everything has a place."""
    cost = workload.cost
    whole = sum(cost.layer_weights) + cost.embedding + cost.output + cost.workspace
    whole += cost.kv_per_layer * len(cost.layer_weights)
    steps = -(-whole // STEP)
    lacking = largest(steps, 1, lambda n: reach(_joined(budget, cost, n * STEP)) < len(cost.layer_weights))
    return (lacking + 1) * STEP


def _joined(budget: Budget, cost: StageCost, free: int) -> Budget:
    """A cluster's memory with one more worker's, which takes weights as they are counted."""
    weights = np.concatenate(([0], np.cumsum(cost.layer_weights)))
    layers = np.asarray(weights + cost.kv_per_layer * np.arange(len(weights)), np.float64)
    use = budget.use.with_worker(layers, cost.workspace, cost.embedding, cost.output)
    return Budget(use, np.append(budget.caps, free), [replace(limit, use=use) for limit in budget.shared])


def _rooms(facts: ClusterFacts, budget: Budget) -> tuple[Room, ...]:
    rooms = budget.caps - budget.use.stage
    counts = (np.searchsorted(row, room, side="right") - 1 for row, room in zip(budget.use.layers, rooms, strict=True))
    return tuple(
        Room(name, int(cap), max(0, int(count)))
        for name, cap, count in zip(facts.names, budget.caps, counts, strict=True)
    )


def largest(high: int, low: int, holds: Callable[[int], bool]) -> int:
    """The largest number within low … high of which it holds, 0 if of none; what holds does so for smaller ones."""
    if high < low or not holds(low):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
