"""Plans for tests that show or check one and run nothing."""

from __future__ import annotations

from hyperlane.core import (
    Address,
    ElementType,
    LayerRange,
    ModelFacts,
    Plan,
    Precision,
    StagePlan,
    WorkerFacts,
)


def a_worker(name: str, port: int) -> WorkerFacts:
    """A CPU worker with 4 of 8 GiB free."""
    return WorkerFacts(
        name=name,
        control=Address("127.0.0.1", port),
        data=Address("127.0.0.1", port + 1),
        device="cpu",
        provider="CPUExecutionProvider",
        threads=1,
        memory_total=8 << 30,
        memory_free=4 << 30,
        element=ElementType.F32,
        hyperlane_version="0.1.0",
        protocol=1,
        runtime_version="none",
    )


def two_stage_plan(model: ModelFacts, context: int, slots: int = 4) -> Plan:
    """The model's layers in two halves on two workers of this machine."""
    half = model.layers // 2
    ranges = (LayerRange(0, half), LayerRange(half, model.layers))
    stages = tuple(
        StagePlan(index, a_worker(f"worker-{index}", 7420 + 2 * index), layers, 3 << 20, 1 << 20, 1 << 19)
        for index, layers in enumerate(ranges)
    )
    return Plan(model, stages, slots, context, (Precision.RAW,) * (len(stages) + 1))
