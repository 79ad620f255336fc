"""Which worker is kept out of the plans for the quickest recovery, and which of their stages it holds ready. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hyperlane.cluster.planner.optimum import TIE
from hyperlane.core import Address, Plan, StagePlan, WorkerFacts

Failures = Callable[[Address], int]
"""How often a worker failed of late."""


@dataclass(frozen=True, slots=True)
class Held:
    """A stage that a spare holds: the number of its plan, and the stage there."""

    plan: int
    stage: StagePlan


@dataclass(frozen=True, slots=True)
class Sparing:
    """Plans that do without a worker. `seconds`: what they are predicted to take, the less the better."""

    plans: tuple[Plan, ...]
    spare: WorkerFacts
    seconds: float


def held_by(plans: Sequence[Plan], free_bytes: int, failures: Failures = lambda _: 0) -> tuple[Held, ...]:
    """The stages to hold in so much memory: those whose loss is likeliest and would be longest, as many as fit.

    A stage takes so long to load as it has bytes; it counts once more for each time that its worker failed of late.
    """
    stages = [Held(number, stage) for number, plan in enumerate(plans) for stage in plan.stages]
    stages.sort(key=lambda held: -(1 + failures(held.stage.worker.control)) * needed_bytes(held.stage))
    chosen: list[Held] = []
    for held in stages:
        if needed_bytes(held.stage) <= free_bytes:
            free_bytes -= needed_bytes(held.stage)
            chosen.append(held)
    return tuple(chosen)


def spare_of(plans: Sequence[Plan], workers: Sequence[WorkerFacts]) -> WorkerFacts | None:
    """Of the workers outside the plans, the one that can hold most bytes of their stages, of equals the last one.

    `workers`: with the memory that is free before the plans are loaded. None: no worker can hold any stage.
    """
    used = {stage.worker.control for plan in plans for stage in plan.stages}
    outside = [worker for worker in workers if worker.control not in used]
    rooms = [_held_bytes(plans, worker) for worker in outside]
    best = max(zip(rooms, range(len(rooms)), strict=True), default=(0, 0))
    return outside[best[1]] if best[0] else None


def best_sparing(options: Sequence[Sparing]) -> Sparing | None:
    """The fastest; of those that are as fast, the one whose spare can hold most, of equals the last one."""
    if not options:
        return None
    least = min(option.seconds for option in options)
    fast = [option for option in options if option.seconds <= least * (1 + TIE)]
    ranked = [(_held_bytes(option.plans, option.spare), number) for number, option in enumerate(fast)]
    return fast[max(ranked)[1]]


def needed_bytes(stage: StagePlan) -> int:
    """All that a stage takes."""
    return stage.weight_bytes + stage.kv_bytes + stage.workspace_bytes


def room_beside(plans: Sequence[Plan], worker: WorkerFacts) -> int:
    """Bytes that are left for a worker outside the plans when these are loaded; its memory is as before that."""
    if not worker.memory_pool:
        return worker.memory_free
    stages = [stage for plan in plans for stage in plan.stages]
    taken = sum(needed_bytes(stage) for stage in stages if stage.worker.memory_pool == worker.memory_pool)
    return max(0, min(worker.memory_free, worker.pool_room - taken))


def _held_bytes(plans: Sequence[Plan], worker: WorkerFacts) -> int:
    return sum(needed_bytes(held.stage) for held in held_by(plans, room_beside(plans, worker)))
