"""One cluster and one workload as the arrays that the searches take. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from hyperlane.cluster.planner.budget import Budget, Numbers, Shared, Use
from hyperlane.cluster.planner.facts import HEAD, ClusterFacts, Workload
from hyperlane.cluster.planner.frame_cost import FrameCost, Shape, decode_shape
from hyperlane.cluster.planner.layout import Layout, Share, links_of
from hyperlane.cluster.planner.predict import Predictor
from hyperlane.cluster.planner.ring_cost import RingCost
from hyperlane.core import StageCost, holds_twice


class Problem:
    """What is asked of the searches: memory, sums and loads of this cluster and workload."""

    def __init__(self, facts: ClusterFacts, workload: Workload) -> None:
        self.facts = facts
        self.workload = workload
        self.predictor = Predictor(facts, workload)
        self.memory = memory_budget(facts, workload)

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return self.workload.model.layers

    def ring(self, shape: Shape) -> RingCost:
        """The sum round the ring for one frame."""
        cost = self.predictor.costs.of(shape)
        links = cost.send + cost.delay
        links[-1] += cost.head_s
        return RingCost(self._use(cost), links)

    def ring_of_one_token(self) -> RingCost:
        """The sum for one token of one stream."""
        return self.ring(decode_shape(1))

    def loads(self, shapes: Sequence[Shape]) -> RingCost:
        """How long the frames of these shapes keep each stage and each link busy, one after another."""
        costs = [self.predictor.costs.of(shape) for shape in shapes]
        use = self._use(costs[0])
        for cost in costs[1:]:
            use += self._use(cost)
        return RingCost(use, sum((cost.send for cost in costs[1:]), costs[0].send))

    def busy_at_most(self, loads: RingCost, seconds: float, *, together: bool) -> Budget:
        """No stage may be busy for longer; nor, if `together`, a machine's cores with all its workers' threads."""
        caps = np.full(len(self.facts.workers), seconds)
        shared = [
            Shared(loads.stages, seconds * crowd.cores, tuple((worker, float(n)) for worker, n in crowd.weights))
            for crowd in self.predictor.crowds
            if together
        ]
        return Budget(loads.stages, caps, shared)

    def busiest_s(self, loads: RingCost, layout: Layout) -> float:
        """The longest time that a stage or a link is busy."""
        links = max(float(loads.links[link]) for link in links_of(layout, len(loads.links) - 1))
        return max(links, loads.stages.most(layout))

    # --- memory ------------------------------------------------------------------------------------------------

    def fits(self, *layouts: Layout) -> bool:
        """Whether layouts of different workers have the memory and the links that they need, beside one another."""
        together = tuple(share for layout in layouts for share in layout)
        has_room = all(self.memory.use.of(share) <= self.memory.caps[share.worker] for share in together)
        has_room = has_room and all(limit.is_kept(together) for limit in self.memory.shared)
        return has_room and all(self.is_linked(layout) for layout in layouts)

    def is_linked(self, layout: Layout) -> bool:
        """Whether there is a path for every link of its ring."""
        return math.isfinite(self.ring_of_one_token().of(layout))

    def stays_on_one_machine(self, source: int, target: int) -> bool:
        """Whether the link between two ends, the head's number behind the workers', leaves no machine."""
        names = (*self.facts.names, HEAD)
        pair = (names[source], names[target])
        return any(path.loopback for path in self.facts.paths if (path.source, path.target) == pair)

    def cost_on(self, worker: int) -> StageCost:
        """What stages take on a worker's device."""
        return self.workload.cost.on(self.facts.workers[worker].provider)

    def stage_bytes(self, share: Share, layout: Layout = ()) -> tuple[int, int]:
        """Bytes of a stage's weights, held twice where there is room beside the layout's others, and of its arena."""
        cost = self.cost_on(share.worker)
        kv = cost.kv_per_layer * len(share.layers)
        return int(self.memory.use.of(share)) - kv - cost.workspace + self._copy(share, layout), kv

    def _copy(self, share: Share, layout: Layout) -> int:
        """Bytes of the weights' second form, 0 where it is not held."""
        cost, others = self.cost_on(share.worker), tuple(one for one in layout if one is not share)
        if cost.copies is None:
            return 0
        copy = cost.copies.of(share.layers)
        needed = int(self.memory.use.of(share)) - cost.workspace + copy
        worker = self.facts.workers[share.worker]
        return copy if holds_twice(self._left(others, share.worker), worker.memory_total, needed) else 0

    def free_after(self, layout: Layout, worker: int) -> int:
        """Bytes that are left for a worker when a layout is loaded, its pool's other stages included."""
        sharing = {worker, *self._sharing(worker)}
        copies = sum(self._copy(share, layout) for share in layout if share.worker in sharing)
        return self._left(layout, worker) - copies

    def _sharing(self, worker: int) -> list[int]:
        """The workers of its pools."""
        name = self.facts.names[worker]
        return [
            self.facts.names.index(other) for pool in self.facts.pools if name in pool.workers for other in pool.workers
        ]

    def _left(self, layout: Layout, worker: int) -> int:
        """The same with all weights held once."""
        use, name = self.memory.use, self.facts.names[worker]
        left = [self.memory.caps[worker] - sum(use.of(share) for share in layout if share.worker == worker)]
        for pool, limit in zip(self.facts.pools, self.memory.shared, strict=True):
            if name in pool.workers:
                left.append(limit.limit - limit.used(layout))
        return int(min(left))

    def _use(self, cost: FrameCost) -> Use:
        layers = cost.layer[:, None] * np.arange(self.layers + 1)
        return Use(layers, cost.step, cost.embed, cost.project)


def memory_budget(facts: ClusterFacts, workload: Workload) -> Budget:
    """Bytes that stages take on each worker, what is free there, and what workers of one pool have together."""
    cost = workload.cost
    costs = [cost.on(worker.provider) for worker in facts.workers]
    measured = zip(facts.devices, costs, strict=True)
    factors = np.array([1.0 if one.counted else device.weights_factor for device, one in measured])
    kv = np.array([one.kv_per_layer for one in costs], np.int64)[:, None] * np.arange(len(cost.layer_weights) + 1)
    weights = np.array([[0, *accumulate(one.layer_weights)] for one in costs]).reshape(
        len(costs), len(cost.layer_weights) + 1
    )
    use = Use(
        np.ceil(factors[:, None] * weights) + kv,
        np.array([float(one.workspace) for one in costs]),
        np.ceil(factors * [one.embedding for one in costs]),
        np.ceil(factors * [one.output for one in costs]),
    )
    numbers = {name: number for number, name in enumerate(facts.names)}
    shared = [
        Shared(use, float(pool.free_bytes), tuple((numbers[name], 1.0) for name in pool.workers))
        for pool in facts.pools
    ]
    return Budget(use, _caps(facts), shared)


def _caps(facts: ClusterFacts) -> Numbers:
    caps = {device.worker: device.free_bytes for device in facts.devices}
    for pool in facts.pools:
        caps |= {name: min(caps[name], pool.free_bytes) for name in pool.workers}
    return np.array([float(caps[name]) for name in facts.names])
