"""A toy model's facts and plans, for tests that need a model's shape and no weights."""

from __future__ import annotations

from hyperlane.core import (
    Address,
    ElementType,
    Epoch,
    HeadId,
    LayerRange,
    ModelFacts,
    Plan,
    Precision,
    RopeFacts,
    StagePlan,
    StageSpec,
    WorkerFacts,
)
from hyperlane.testing.byte_tokenizer import VOCAB

TOY_HEAD = HeadId(bytes(range(16)))


def toy_facts(layers: int = 4, hidden: int = 8, vocab: int = VOCAB, context: int = 512) -> ModelFacts:
    """Facts of a model that `FakeEngine` runs; `hidden` of at least 4 values holds its state."""
    return ModelFacts(
        name="toy",
        family="toy",
        fingerprint="0" * 64,
        layers=layers,
        hidden=hidden,
        heads=1,
        kv_heads=1,
        head_dim=hidden,
        ffn=hidden,
        vocab=vocab,
        context=context,
        rms_eps=1e-5,
        rope=RopeFacts(theta=10_000.0, dims=hidden),
        tied_output=True,
    )


def toy_plan(facts: ModelFacts, stages: int = 2, slots: int = 4) -> Plan:
    """The model's layers over `stages` workers that are not there, as evenly as they go."""
    bounds = [facts.layers * index // stages for index in range(stages + 1)]
    return Plan(
        model=facts,
        stages=tuple(
            StagePlan(index, _worker(index), LayerRange(bounds[index], bounds[index + 1]), 0, 0, 0)
            for index in range(stages)
        ),
        slots=slots,
        context=facts.context,
        precisions=(Precision.RAW,) * (stages + 1),
    )


def toy_specs(plan: Plan, epoch: int = 1, max_step_tokens: int = 128) -> tuple[StageSpec, ...]:
    """What Load would carry to each worker of the plan."""
    return tuple(
        StageSpec(
            model=plan.model,
            epoch=Epoch(TOY_HEAD, epoch),
            index=stage.index,
            stages=len(plan.stages),
            layers=stage.layers,
            slots=plan.slots,
            context=plan.context,
            threads=1,
            max_step_tokens=max_step_tokens,
            precision_in=plan.precisions[stage.index],
            precision_out=plan.precisions[stage.index + 1],
        )
        for stage in plan.stages
    )


def _worker(index: int) -> WorkerFacts:
    return WorkerFacts(
        name=f"toy-{index}",
        control=Address("127.0.0.1", 1),
        data=Address("127.0.0.1", 2),
        device="toy",
        provider="toy",
        threads=1,
        memory_total=1 << 30,
        memory_free=1 << 30,
        element=ElementType.F32,
        hyperlane_version="0",
        protocol=1,
        runtime_version="0",
    )
