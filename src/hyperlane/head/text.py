"""Tokens to text that may be shown: whole characters only, stop strings found and cut away. Pure.

Knows no stream and no thread. A token is let go once all of its text is; what may be the beginning of a stop
string is held back, with its tokens, until it is decided.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hyperlane.core import TextDelta, TokenChoice


class _Held(NamedTuple):
    token: int
    choice: TokenChoice | None
    end: int
    """Length of the whole answer's text by which this token's text is complete."""


class TextAssembler:
    """The text of one answer, token by token. `token_bytes`: the bytes that a token stands for.

    The result does not depend on where tokens end: of several stop strings the one that is complete first decides,
    of those that end together the one that begins first.
    """

    __slots__ = ("_decoder", "_held", "_longest", "_released", "_stops", "_text", "_token_bytes", "stopped")

    def __init__(self, token_bytes: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held: deque[_Held] = deque()
        self._text = ""
        """Text that is not released yet."""
        self._released = 0
        self.stopped = False

    def push(self, token: int, choice: TokenChoice | None = None) -> TextDelta | None:
        """Add a token; returns what may be shown now. Sets `stopped` when a stop string is complete.

        Text from the stop string on, and the tokens that carry any of it, are dropped.
        """
        self._text += self._decoder.decode(self._token_bytes(token))
        undecoded = 1 if self._decoder.getstate()[0] else 0
        self._held.append(_Held(token, choice, self._released + len(self._text) + undecoded))
        return self._release(self._safe_length())

    def finish(self) -> TextDelta | None:
        """What is still held back when the answer ends without a stop string; an unfinished character is U+FFFD."""
        self._text += self._decoder.decode(b"", final=True)
        length = self._safe_length()
        return self._release(length if self.stopped else len(self._text) + 1)

    def _safe_length(self) -> int:
        """Characters of the held text that no stop string can still claim."""
        text = self._text
        if not self._stops or not text:
            return len(text)
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return min(found)[1]
        for length in range(min(len(text), self._longest - 1), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return len(text) - length
        return len(text)

    def _release(self, length: int) -> TextDelta | None:
        text, self._text = self._text[:length], self._text[length:]
        self._released += length
        held = self._held
        free: list[_Held] = []
        while held and held[0].end <= self._released:
            free.append(held.popleft())
        if not text and not free:
            return None
        choices = tuple(one.choice for one in free if one.choice is not None)
        return TextDelta(text, tuple(one.token for one in free), choices)
