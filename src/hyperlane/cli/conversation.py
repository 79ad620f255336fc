"""A conversation that keeps within the context. Pure: it counts tokens with a function that it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hyperlane.core import ChatMessage


@dataclass(frozen=True, slots=True)
class Fitted:
    """The messages that fit, and how many earlier ones were left out."""

    messages: tuple[ChatMessage, ...]
    dropped: int


def fit(
    messages: Sequence[ChatMessage], count_tokens: Callable[[Sequence[ChatMessage]], int], room: int
) -> Fitted | None:
    """The conversation without its oldest exchanges, as few as it takes to have at most `room` tokens.

    System messages stay, and so does the last message; None when these alone are too long. What remains begins with
    a user's message, which chat templates insist on.
    """
    system = tuple(message for message in messages if message.role == "system")
    turns = tuple(message for message in messages if message.role != "system")
    for first, turn in enumerate(turns):
        if turn.role == "user" and count_tokens((*system, *turns[first:])) <= room:
            return Fitted((*system, *turns[first:]), first)
    return None


def answer_room(context: int, max_tokens: int | None) -> int:
    """Tokens of the context kept free for an answer: what was asked for, else a quarter, at most 512."""
    return min(max_tokens or min(512, context // 4), context - 1)
