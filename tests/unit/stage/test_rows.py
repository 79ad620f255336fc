from dataclasses import replace

import pytest

from hyperlane.core import Row
from hyperlane.errors import ProtocolError
from hyperlane.stage.rows import SlotLengths, check_rows
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs

SPEC = toy_specs(toy_plan(toy_facts(context=100), stages=1, slots=4), max_step_tokens=64)[0]


def lengths(**held):
    made = SlotLengths(4)
    for slot, length in held.items():
        made.written(int(slot[1:]), 0, length)
    return made


@pytest.mark.parametrize(
    "rows",
    [
        (Row(3, 0, 64, (0, 63)),),
        (Row(0, 10, 1, (0,)), Row(1, 0, 5)),
        (Row(0, 4, 6, extra_ids=(0,), top_k=257, want=(5,)),),
    ],
)
def test_rows_within_the_limits_are_accepted(rows):
    check_rows(rows, SPEC, lengths(s0=10))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ((), "0 rows"),
        ((Row(4, 0, 1),), "slot 4"),
        ((Row(-1, 0, 1),), "slot -1"),
        ((Row(0, 0, 65),), "65 tokens"),
        ((Row(0, 0, 40), Row(1, 0, 40)), "80 tokens"),
        ((Row(0, 0, 0),), "0 tokens"),
        ((Row(0, -1, 2),), "position -1"),
        ((Row(0, 10, 91),), "91 tokens"),
        ((Row(0, 11, 1),), "goes on at 11"),
        ((Row(0, 0, 1), Row(0, 1, 1)), "same slot"),
        ((Row(0, 0, 3, (3,)),), "wanted"),
        ((Row(0, 0, 3, (1, 0)),), "wanted"),
        ((Row(0, 0, 3, (1, 1)),), "wanted"),
        ((Row(0, 0, 1, (0,), top_k=0),), "0 candidates"),
        ((Row(0, 0, 1, (0,), top_k=1 << 20),), "candidates"),
        ((Row(0, 0, 1, (0,), extra_ids=(-1,)),), "extra ids"),
        ((Row(0, 0, 1, (0,), extra_ids=(1 << 20,)),), "extra ids"),
        ((Row(0, 0, 1, (0,), temperature=0.0),), "temperature"),
        ((Row(0, 0, 1, (0,), temperature=float("nan")),), "temperature"),
    ],
)
def test_rows_beyond_the_limits_are_refused_with_the_reason(rows, reason):
    spec = replace(SPEC, max_step_tokens=90) if "91" in reason else SPEC
    with pytest.raises(ProtocolError, match=reason):
        check_rows(rows, replace(spec, max_step_tokens=200) if "91" in reason else spec, lengths(s0=10))


def test_a_row_at_the_beginning_makes_a_slot_new_and_overwriting_shortens_nothing():
    held = lengths(s1=20)
    held.written(1, 5, 6)
    assert held[1] == 20
    held.written(1, 19, 24)
    assert held[1] == 24
    held.written(1, 0, 3)
    assert held[1] == 3


def test_copies_are_checked_and_counted():
    held = lengths(s0=10)
    held.copied(0, 2, 7)
    assert held[2] == 7
    for source, destination, count in ((0, 4, 1), (-1, 0, 1), (0, 1, 11), (0, 1, -1)):
        with pytest.raises(ProtocolError):
            held.copied(source, destination, count)
