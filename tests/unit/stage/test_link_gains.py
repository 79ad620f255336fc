"""What links' values are multiplied by: from the norms that read them, the same at both ends."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from hyperlane.core import LayerRange, Precision
from hyperlane.models.inventory import OUTPUT_NORM
from hyperlane.models.layout import link_layouts
from hyperlane.stage.link_gains import gains_of, link_gains
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs

FACTS = toy_facts(layers=8, hidden=64)


def packed_specs(stages: int) -> list:
    plan = toy_plan(FACTS, stages)
    inner = (Precision.INT4,) * (stages - 1)
    return list(toy_specs(replace(plan, precisions=(Precision.RAW, *inner, Precision.RAW))))


def norm_of(name: str) -> np.ndarray:
    return np.random.default_rng(sum(name.encode())).uniform(0.1, 2.0, FACTS.hidden).astype(np.float32)


def test_both_ends_of_a_link_come_to_the_same_gains():
    specs = packed_specs(4)
    ends = [link_gains(spec, lambda unit: [norm_of(name) for name in unit.tensors]) for spec in specs]
    assert ends[0].received is None
    assert ends[-1].sent is None
    for before, after in itertools.pairwise(ends):
        np.testing.assert_array_equal(before.sent, after.received)


def test_the_norms_are_those_of_the_next_three_layers_that_there_are():
    first, last = packed_specs(2)
    assert link_layouts(first)[1].tensors == tuple(
        f"blk.{layer}.{norm}.weight" for layer in (4, 5, 6) for norm in ("attn_norm", "ffn_norm")
    )
    late = replace(last, layers=LayerRange(7, 8))
    assert link_layouts(late)[0].tensors == ("blk.7.attn_norm.weight", "blk.7.ffn_norm.weight")


def test_a_stage_that_only_projects_takes_the_norm_of_the_projection():
    _, last = packed_specs(2)
    assert link_layouts(replace(last, layers=LayerRange(8, 8)))[0].tensors == (OUTPUT_NORM,)


def test_raw_links_need_nothing():
    for spec in toy_specs(toy_plan(FACTS, 3)):
        assert link_layouts(spec) == (None, None)


def test_a_gain_is_the_weight_to_the_power_of_three_quarters():
    norm = np.array([1.0, 3.0, 1.0, 1.0, 2.0, 0.0], np.float32)
    weights = norm / np.sqrt(16 / 6)
    np.testing.assert_allclose(gains_of([norm])[:5], weights[:5] ** 0.75, rtol=1e-6)
    assert gains_of([norm])[5] == pytest.approx(0.02**0.75)


def test_norms_count_alike_whatever_their_size():
    one, other = norm_of("one"), norm_of("other")
    np.testing.assert_allclose(gains_of([one, other]), gains_of([1000 * one, other]), rtol=1e-6)


def test_norms_of_nothing_but_zeros_leave_values_as_they_are():
    assert gains_of([np.zeros(64, np.float32)]).tolist() == [1.0] * 64


def test_gains_are_the_same_to_the_bit_on_every_machine():
    found = gains_of([np.arange(1, 65, dtype=np.float32), np.float32(1) / np.arange(1, 65, dtype=np.float32)])
    assert found[[0, 1, 31, 63]].tobytes().hex() == "b27a43403b7de83f8311333fc2e7933f"
