"""Who holds an error does not hold what was half made when it came."""

from __future__ import annotations

import weakref

import pytest

from hyperlane.stage.failures import let_go


class Large:
    """Stands for a session."""


def fail(made: list[weakref.ref[Large]]) -> None:
    session = Large()
    made.append(weakref.ref(session))
    raise ValueError("no room")


def fail_for_a_cause(made: list[weakref.ref[Large]]) -> None:
    other = Large()
    made.append(weakref.ref(other))
    try:
        fail(made)
    except ValueError as error:
        raise RuntimeError("the load failed") from error


def test_what_the_frames_of_an_error_and_of_its_cause_hold_is_let_go():
    made: list[weakref.ref[Large]] = []
    with pytest.raises(RuntimeError) as held:
        fail_for_a_cause(made)
    assert all(one() is not None for one in made)
    let_go(held.value)
    assert [one() for one in made] == [None, None]
