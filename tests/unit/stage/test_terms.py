"""What the two ends of a link agree on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperlane.core import ElementType, Precision
from hyperlane.errors import ConfigError, ProtocolError
from hyperlane.stage.terms import agree, hello_to, hello_to_next
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs
from hyperlane.wire.frame import Role

FIRST, SECOND = toy_specs(toy_plan(toy_facts(), stages=2))
F32 = ElementType.F32


def test_a_stage_says_to_the_next_what_that_one_expects():
    assert hello_to_next(FIRST, F32) == hello_to(SECOND, Role.UPSTREAM, F32)


def test_the_smaller_limits_hold():
    mine = hello_to(SECOND, Role.UPSTREAM, F32)
    theirs = replace(mine, limits=replace(mine.limits, max_step_tokens=7, max_rows=99))
    agreed = agree(mine, theirs)
    assert (agreed.max_step_tokens, agreed.max_rows) == (7, mine.limits.max_rows)


@pytest.mark.parametrize(
    "change", [{"stage": 0}, {"element": ElementType.F16}, {"hidden": 9}, {"role": Role.DOWNSTREAM}]
)
def test_another_link_is_refused_by_name(change):
    mine = hello_to(SECOND, Role.UPSTREAM, F32)
    with pytest.raises(ProtocolError, match=next(iter(change))):
        agree(mine, replace(mine, **change))


def test_another_vocabulary_is_refused():
    mine = hello_to(SECOND, Role.UPSTREAM, F32)
    with pytest.raises(ProtocolError, match="vocab"):
        agree(mine, replace(mine, limits=replace(mine.limits, vocab=1)))


def test_a_model_that_cannot_be_packed_is_refused():
    with pytest.raises(ConfigError, match="int4"):
        hello_to_next(replace(FIRST, precision_out=Precision.INT4), F32)


def test_engines_of_two_types_agree_on_a_packed_link_and_on_no_raw_one():
    first, second = toy_specs(toy_plan(toy_facts(hidden=64), stages=2))
    packed = replace(first, precision_out=Precision.INT8), replace(second, precision_in=Precision.INT8)
    agreed = agree(hello_to(packed[1], Role.UPSTREAM, F32), hello_to_next(packed[0], ElementType.F16))
    assert agreed.token_bytes == 65
    with pytest.raises(ProtocolError, match="element"):
        agree(hello_to(second, Role.UPSTREAM, F32), hello_to_next(first, ElementType.F16))


def test_ends_of_two_precisions_do_not_agree():
    first, second = toy_specs(toy_plan(toy_facts(hidden=64), stages=2))
    packed = replace(first, precision_out=Precision.INT8)
    with pytest.raises(ProtocolError, match="precision"):
        agree(hello_to(second, Role.UPSTREAM, F32), hello_to_next(packed, F32))
