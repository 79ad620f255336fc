"""Which precision a link gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperlane.cluster.planner.facts import PathFacts
from hyperlane.cluster.precisions import Wire, precision_for, with_precisions
from hyperlane.core import ElementType, Precision
from hyperlane.errors import ConfigError
from hyperlane.testing.toy import toy_facts, toy_plan

RAW, INT8, INT4, SINGLE = Precision
F32, F16 = ElementType.F32, ElementType.F16
MBIT = 125e3
PLAN = toy_plan(toy_facts(hidden=4096), stages=3)


def path(source: int, target: int, mbit: float, **fields: object) -> PathFacts:
    names = PLAN.stages[source].worker.name, PLAN.stages[target].worker.name
    return replace(PathFacts(*names, 0.5e-3, mbit * MBIT), **fields)


@pytest.mark.parametrize(
    ("mbit", "rtt_ms", "hidden", "element", "expected"),
    [
        (100, 0.5, 4096, F16, INT4),
        (1000, 0.5, 4096, F16, INT8),
        (2500, 0.5, 4096, F16, RAW),
        (40000, 0.05, 4096, F32, RAW),
        (100, 0.5, 576, F32, INT8),
        (1000, 0.5, 576, F32, RAW),
        (10, 0.5, 576, F32, INT4),
        (300, 10.0, 4096, F16, INT8),
        (1000, 600.0, 4096, F16, RAW),
        (1, 0.5, 100, F32, RAW),
    ],
)
def test_a_slow_path_packs_more(mbit, rtt_ms, hidden, element, expected):
    assert precision_for(mbit * MBIT, rtt_ms / 1e3, hidden, element) is expected


def test_a_slower_path_never_packs_less():
    order = [precision_for(mbit * MBIT, 1e-3, 2048, F16) for mbit in (20000, 5000, 2000, 1000, 500, 200, 100, 50, 10)]
    assert [list(Precision).index(one) for one in order] == sorted(list(Precision).index(one) for one in order)


def test_each_link_has_its_own_precision_and_the_heads_links_are_raw():
    made = with_precisions(PLAN, Wire.AUTO, [path(0, 1, 1000), path(1, 2, 50), path(1, 0, 1)])
    assert made.precisions == (RAW, INT8, INT4, RAW)


def test_within_a_machine_nothing_is_packed_and_a_machine_is_told_by_its_host():
    slow = [path(0, 1, 50), path(1, 2, 50)]
    hosts = ("a", "a", "b")
    stages = (
        replace(stage, worker=replace(stage.worker, machine="same image", host=host))
        for stage, host in zip(PLAN.stages, hosts, strict=True)
    )
    assert with_precisions(replace(PLAN, stages=tuple(stages)), Wire.AUTO, slow).precisions == (RAW, RAW, INT4, RAW)


@pytest.mark.parametrize("fields", [{"loopback": True}, {"rtt_s": 100.0}])
def test_a_path_within_a_machine_or_of_a_long_delay_stays_raw(fields):
    assert with_precisions(PLAN, Wire.AUTO, [path(0, 1, 50, **fields)]).precisions == (RAW,) * 4


def test_workers_of_one_machine_stay_raw_even_if_their_path_was_measured_slow():
    stages = tuple(replace(stage, worker=replace(stage.worker, machine="m")) for stage in PLAN.stages)
    assert with_precisions(replace(PLAN, stages=stages), Wire.AUTO, [path(0, 1, 50)]).precisions == (RAW,) * 4


def test_what_was_not_measured_stays_raw():
    assert with_precisions(PLAN, Wire.AUTO).precisions == (RAW,) * 4


def test_engines_of_two_types_are_linked_by_float32_where_others_are_raw():
    first, *others = PLAN.stages
    mixed = replace(PLAN, stages=(replace(first, worker=replace(first.worker, element=F16)), *others))
    assert with_precisions(mixed, Wire.AUTO).precisions == (RAW, SINGLE, RAW, RAW)
    assert with_precisions(mixed, Wire.RAW).precisions == (RAW, SINGLE, RAW, RAW)
    assert with_precisions(mixed, Wire.INT4).precisions == (RAW, INT4, INT4, RAW)


@pytest.mark.parametrize("wire", [Wire.RAW, Wire.INT8, Wire.INT4])
def test_what_is_asked_for_holds_on_every_link_between_stages(wire):
    asked = Precision(wire.value)
    assert with_precisions(PLAN, wire, [path(0, 1, 50)]).precisions == (RAW, asked, asked, RAW)
    assert with_precisions(toy_plan(toy_facts(), stages=1), wire).precisions == (RAW, RAW)


def test_a_model_that_cannot_be_packed_is_refused_when_asked_and_raw_when_not():
    odd = toy_plan(toy_facts(hidden=100), stages=2)
    assert with_precisions(odd, Wire.AUTO).precisions == (RAW,) * 3
    with pytest.raises(ConfigError, match="no multiple of 64; use --wire raw"):
        with_precisions(odd, Wire.INT4)
