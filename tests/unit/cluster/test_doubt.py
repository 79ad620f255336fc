"""When what was measured is measured again."""

from __future__ import annotations

import pytest

from hyperlane.cluster.pipelines.doubt import AGAIN_AFTER_S, LONGEST_AFTER_S, LOOKS, Doubt, is_wrong
from hyperlane.core import Achieved, Prediction

SAID = Prediction(0.01, 1.0, 512, 400.0, 4, 2, 4, (0.01,))
RIGHT, SLOW = Achieved(token_s=0.012), Achieved(token_s=0.02)


def looked(*found: Achieved, start: Doubt | None = None) -> Doubt:
    """After so many looks, between which a hundred tokens came each time."""
    doubt = start or Doubt()
    for achieved in found:
        doubt = doubt.seen(SAID, achieved, doubt.tokens + 100)
    return doubt


@pytest.mark.parametrize(
    ("achieved", "wrong"),
    [
        (RIGHT, False),
        (SLOW, True),
        (Achieved(token_s=0.005), True),
        (Achieved(), None),
        (Achieved(many_rate=380.0, streams=4), False),
        (Achieved(many_rate=200.0, streams=4), True),
        (Achieved(many_rate=200.0, streams=2), None),
        (Achieved(token_s=0.01, many_rate=200.0, streams=4), True),
    ],
)
def test_what_was_not_predicted_is_held_against_nothing(achieved, wrong):
    assert is_wrong(SAID, achieved) is wrong


def test_a_plan_that_is_long_wrong_is_due():
    assert not looked(*[SLOW] * (LOOKS - 1)).is_due(0.0)
    assert looked(*[SLOW] * LOOKS).is_due(0.0)


def test_one_look_at_which_it_was_right_begins_anew():
    assert not looked(*[SLOW] * (LOOKS - 1), RIGHT, SLOW).is_due(0.0)


def test_while_nobody_asks_nothing_is_found_out_and_nothing_forgotten():
    due = looked(*[SLOW] * LOOKS)
    assert due.seen(SAID, SLOW, due.tokens) == due
    begun = looked(SLOW)
    for _ in range(LOOKS):
        begun = begun.seen(SAID, SLOW, begun.tokens)
    assert not begun.is_due(0.0)


def test_a_plan_that_predicts_nothing_is_never_doubted():
    doubt = Doubt()
    for look in range(1, 3 * LOOKS):
        doubt = doubt.seen(None, SLOW, 100 * look)
    assert not doubt.is_due(0.0)


def test_measuring_that_mends_nothing_is_done_less_and_less():
    doubt, now_s, pauses = Doubt(), 0.0, []
    for _ in range(8):
        doubt = looked(*[SLOW] * LOOKS, start=doubt.settled(now_s))
        pauses.append(doubt.not_before_s - now_s)
        assert not doubt.is_due(doubt.not_before_s - 1.0)
        assert doubt.is_due(doubt.not_before_s)
        now_s = doubt.not_before_s
    assert pauses[:3] == [AGAIN_AFTER_S, 2 * AGAIN_AFTER_S, 4 * AGAIN_AFTER_S]
    assert pauses[-1] == LONGEST_AFTER_S
    mended = looked(RIGHT, start=doubt)
    assert mended.settled(0.0).not_before_s == AGAIN_AFTER_S
