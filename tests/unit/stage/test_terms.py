"""What the two ends of a link agree on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperlane.core import ElementType, Precision
from hyperlane.errors import ConfigError, ProtocolError
from hyperlane.stage.terms import agree, hello_to, hello_to_next, token_bytes
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


def test_a_precision_that_no_engine_packs_is_refused():
    assert token_bytes(8, Precision.RAW, ElementType.F16) == 16
    with pytest.raises(ConfigError, match="int4"):
        token_bytes(8, Precision.INT4, F32)
