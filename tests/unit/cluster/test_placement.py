"""Layers in proportion to memory: properties against brute force, and refusals with their numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlane.cluster.placement import ProportionalPlanner, place, shares
from hyperlane.core import Address, ElementType, Precision, StageCost, WorkerFacts
from hyperlane.errors import DoesNotFit
from hyperlane.testing.toy import toy_facts

MIB = 1 << 20

costs = st.builds(
    StageCost,
    layer_weights=st.lists(st.integers(1, 20), min_size=1, max_size=7).map(tuple),
    embedding=st.integers(0, 20),
    output=st.integers(0, 20),
    kv_per_layer=st.integers(0, 10),
    workspace=st.integers(0, 10),
)
frees = st.lists(st.integers(0, 80), min_size=1, max_size=4)


def worker(index: int, free: int, pool: str = "") -> WorkerFacts:
    return WorkerFacts(
        name=f"w{index}",
        control=Address("10.0.0.1", 7000 + index),
        data=Address("10.0.0.1", 8000 + index),
        device="cpu",
        provider="cpu",
        threads=1,
        memory_total=free,
        memory_free=free,
        element=ElementType.F32,
        hyperlane_version="0",
        protocol=1,
        runtime_version="0",
        memory_pool=pool,
    )


def test_workers_of_one_pool_share_it_each_within_its_own_limit():
    pool = [replace(worker(0, 10, "ram"), pool_free=40), replace(worker(1, 30, "ram"), pool_free=40), worker(2, 7)]
    assert shares(pool) == [10, 20, 7]


def taken(cost: StageCost, first: int, last: int) -> int:
    weights = sum(cost.layer_weights[first:last])
    ends = (cost.embedding if first == 0 else 0) + (cost.output if last == len(cost.layer_weights) else 0)
    return weights + ends + cost.kv_per_layer * (last - first) + cost.workspace


def can_be_placed(cost: StageCost, free: list[int]) -> bool:
    """Every subset of workers with every cut, none empty."""
    layers = len(cost.layer_weights)
    for count in range(1, min(len(free), layers) + 1):
        for workers in combinations(free, count):
            for cuts in combinations(range(1, layers), count - 1):
                bounds = (0, *cuts, layers)
                if all(taken(cost, *bounds[i : i + 2]) <= workers[i] for i in range(count)):
                    return True
    return False


@given(costs, frees)
def test_every_layer_is_placed_once_in_order_and_within_memory(cost, free):
    placement = place([cost] * len(free), free)
    if placement is None:
        return
    end = 0
    for number, layers in placement:
        assert layers.first == end
        assert len(layers) > 0
        assert taken(cost, layers.first, layers.last) <= free[number]
        end = layers.last
    assert end == len(cost.layer_weights)
    assert [number for number, _ in placement] == sorted({number for number, _ in placement})


@given(costs, frees)
def test_it_is_refused_exactly_when_no_cut_over_any_workers_fits(cost, free):
    assert (place([cost] * len(free), free) is not None) == can_be_placed(cost, free)


def test_layers_are_shared_in_proportion_to_free_memory():
    cost = StageCost((10,) * 12, embedding=0, output=0, kv_per_layer=0, workspace=0)
    placement = place([cost] * 3, [400, 200, 600])
    assert [len(layers) for _, layers in placement] == [4, 2, 6]


def test_embedding_and_projection_leave_their_workers_fewer_layers():
    cost = StageCost((10,) * 8, embedding=100, output=60, kv_per_layer=0, workspace=0)
    placement = place([cost] * 3, [200, 200, 200])
    assert [len(layers) for _, layers in placement] == [2, 3, 3]


def test_a_worker_too_small_for_any_layer_is_left_out():
    cost = StageCost((10,) * 4, embedding=5, output=5, kv_per_layer=2, workspace=3)
    assert [number for number, _ in place([cost] * 3, [100, 8, 100])] == [0, 2]


def test_workers_of_one_machine_do_not_count_its_memory_twice():
    workers = [worker(0, 1000, "m"), worker(1, 1000, "m"), worker(2, 900, "n"), worker(3, 700)]
    assert shares(workers) == [500, 500, 900, 700]


def plan(free: int, **change: int):
    cost = StageCost((10 * MIB,) * 4, 8 * MIB, 8 * MIB, kv_per_layer=4 * MIB, workspace=2 * MIB)
    workers = [worker(0, free * MIB), worker(1, free * MIB)]
    return ProportionalPlanner().plan(toy_facts(4), workers, replace(cost, **change), slots=4, context=1023)


def test_a_plan_counts_each_stages_bytes_and_has_a_precision_for_every_link():
    made = plan(64)
    assert [str(stage.layers) for stage in made.stages] == ["0-1", "2-3"]
    assert [stage.weight_bytes for stage in made.stages] == [28 * MIB, 28 * MIB]
    assert [stage.kv_bytes for stage in made.stages] == [8 * MIB, 8 * MIB]
    assert made.precisions == (Precision.RAW,) * 3


def test_a_refusal_says_what_is_needed_what_is_free_and_what_would_fit():
    with pytest.raises(DoesNotFit) as raised:
        plan(34)
    text = str(raised.value)
    assert "56 MiB of weights" in text
    assert "16 MiB of KV arena (4 slots of 1023 tokens)" in text
    assert "w0 (10.0.0.1:7000): 34 MiB free" in text
    assert "--slots 2" in text
    assert "--context 511" in text


def test_a_refusal_promises_nothing_that_would_not_help():
    with pytest.raises(DoesNotFit) as raised:
        plan(20)
    assert "--slots" not in str(raised.value)
    assert "--context" not in str(raised.value)
    assert "more free memory" in str(raised.value)


def test_no_worker_at_all_is_refused_with_what_to_do():
    with pytest.raises(DoesNotFit, match="--local-workers"):
        ProportionalPlanner().plan(toy_facts(), [], StageCost((1,), 0, 0, 0, 0), 1, 16)
