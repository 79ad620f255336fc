"""A plan without the workers that were lost, with as little loading as can be. Pure.

Stages that can stay do; each other one goes whole to a worker that has the room: to one that holds it ready, else to
one without a stage, so that nobody computes twice as long, else to the one with most room. Speed is for the planner,
later.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from hyperlane.core import Address, Plan, StagePlan, WorkerFacts

Ready = Collection[tuple[Address, int]]
"""Workers with the index of a stage that each holds ready, though it runs elsewhere."""


def mended(plan: Plan, workers: Sequence[WorkerFacts], ready: Ready = ()) -> Plan | None:
    """The same stages on the workers that are left; None if a stage finds no room.

    `workers`: those that may be used; `memory_free` counts what their present stages take as free. A stage that is
    `ready` somewhere goes there.
    """
    here = {worker.control: worker for worker in workers}
    stays = [stage.worker.control in here for stage in plan.stages]
    room = {worker.control: worker.memory_free for worker in workers}
    for stage, stay in zip(plan.stages, stays, strict=True):
        if stay:
            room[stage.worker.control] -= _bytes(stage)
    busy = {stage.worker.control for stage, stay in zip(plan.stages, stays, strict=True) if stay}
    stages: list[StagePlan] = []
    for stage, stay in zip(plan.stages, stays, strict=True):
        place = stage.worker.control if stay else _place(stage, room, busy, ready)
        if place is None:
            return None
        if not stay:
            room[place] -= _bytes(stage)
            busy.add(place)
        stages.append(replace(stage, worker=here[place]))
    return replace(plan, stages=tuple(stages))


def is_mended(plan: Plan) -> bool:
    """Whether a worker has several stages, as no planner wants it."""
    return len({stage.worker.control for stage in plan.stages}) < len(plan.stages)


def same_places(one: Plan, other: Plan) -> bool:
    """Whether two plans have the same layers on the same workers in the same order."""
    return _places(one) == _places(other)


def fits_beside(plan: Plan, running: Plan, workers: Sequence[WorkerFacts]) -> bool:
    """Whether what the plan has to load has room beside what runs. `memory_free` of `workers`: free now."""
    held = set(_places(running))
    free: dict[str, int] = {}
    for worker in workers:
        # Workers of one pool see the same free bytes, each as far as its own limit lets it.
        free[_pool(worker)] = max(free.get(_pool(worker), 0), worker.pool_room)
        free[_own(worker)] = worker.memory_free
    for stage, place in zip(plan.stages, _places(plan), strict=True):
        if place not in held:
            for room in (_pool(stage.worker), _own(stage.worker)):
                free[room] = free.get(room, 0) - _bytes(stage)
    return all(left >= 0 for left in free.values())


def _pool(worker: WorkerFacts) -> str:
    return f"pool {worker.memory_pool or worker.control}"


def _own(worker: WorkerFacts) -> str:
    return f"worker {worker.control}"


def _places(plan: Plan) -> list[tuple[Address, int, int]]:
    return [(stage.worker.control, stage.layers.first, stage.layers.last) for stage in plan.stages]


def _place(stage: StagePlan, room: dict[Address, int], busy: set[Address], ready: Ready) -> Address | None:
    fits = [address for address, free in room.items() if free >= _bytes(stage)]
    return min(
        fits,
        key=lambda address: ((address, stage.index) not in ready, address in busy, -room[address]),
        default=None,
    )


def _bytes(stage: StagePlan) -> int:
    return stage.weight_bytes + stage.kv_bytes + stage.workspace_bytes
