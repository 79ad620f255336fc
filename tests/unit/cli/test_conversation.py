from __future__ import annotations

import pytest

from hyperlane.cli.conversation import Fitted, answer_room, fit
from hyperlane.core import ChatMessage

SYSTEM = ChatMessage("system", "s" * 5)
TALK = tuple(
    ChatMessage(role, letter * 10) for role, letter in zip(["user", "assistant"] * 2 + ["user"], "abcde", strict=True)
)


def characters(messages) -> int:
    return sum(len(message.content) for message in messages)


def test_what_fits_stays_whole():
    assert fit((SYSTEM, *TALK), characters, 55) == Fitted((SYSTEM, *TALK), 0)


def test_the_oldest_exchange_goes_first_and_the_system_message_stays():
    assert fit((SYSTEM, *TALK), characters, 54) == Fitted((SYSTEM, *TALK[2:]), 2)


def test_what_remains_begins_with_a_user():
    assert fit(TALK, characters, 29) == Fitted(TALK[4:], 4)


def test_a_last_message_that_is_too_long_alone_does_not_fit():
    assert fit((SYSTEM, *TALK), characters, 14) is None


@pytest.mark.parametrize(
    ("context", "max_tokens", "room"), [(8192, None, 512), (256, None, 64), (8192, 100, 100), (64, 1000, 63)]
)
def test_room_for_an_answer(context, max_tokens, room):
    assert answer_room(context, max_tokens) == room
