"""What a plan's stages make of the scheduler's limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperlane.head.options import CPU, HeadOptions
from hyperlane.testing.toy import toy_facts, toy_plan

CUDA = "CUDAExecutionProvider"


def plan_on(*places):
    plan = toy_plan(toy_facts(), len(places))
    stages = [
        replace(stage, worker=replace(stage.worker, provider=provider, memory_pool=pool))
        for stage, (provider, pool) in zip(plan.stages, places, strict=True)
    ]
    return replace(plan, stages=tuple(stages))


@pytest.mark.parametrize(
    ("places", "groups"),
    [
        ([(CPU, "machine"), (CPU, "machine")], 2),
        ([(CUDA, "machine/0"), (CUDA, "machine/0")], 1),
        ([(CUDA, "machine/0"), (CUDA, "machine/1")], 2),
        ([(CUDA, "machine/0"), (CPU, "machine"), (CUDA, "machine/0")], 2),
        ([(CUDA, ""), (CUDA, "")], 2),
    ],
)
def test_stages_on_one_card_are_one_group_of_decode_rows(places, groups):
    assert HeadOptions().policy(plan_on(*places)).decode_groups == groups
