"""An answer as text: whole, or piece by piece as it comes. Folds a request's events; knows not where they come from."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Self

from hyperlane.core import Event, EventStream, Failed, Finished, FinishReason, RequestTimings, Usage
from hyperlane.errors import InvalidRequest


class Answer(str):
    """An answer's text, with why it ended, what it took in tokens and how long."""

    finish_reason: FinishReason
    usage: Usage
    timings: RequestTimings

    def __new__(cls, text: str, finished: Finished) -> Self:
        """The text with what the head said at its end."""
        answer = super().__new__(cls, text)
        answer.finish_reason, answer.usage, answer.timings = finished.reason, finished.usage, finished.timings
        return answer

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second after the first one; 0 when there was one or none."""
        after_first = self.usage.completion_tokens - 1
        return after_first / self.timings.decode_s if after_first > 0 and self.timings.decode_s > 0 else 0.0


class TextStream(Iterator[str], AsyncIterator[str]):
    """Pieces of an answer as they come; iterate it once, with `for` or with `async for`.

    One that is closed, or forgotten, before its end frees its slot within one step. Errors of the request are raised
    by the iteration.
    """

    def __init__(self, events: EventStream) -> None:
        self._events = events
        self._sync: Iterator[Event] | None = None
        self._async: AsyncIterator[Event] | None = None
        self._texts: list[str] = []
        self._finished: Finished | None = None
        self._cancel = weakref.finalize(self, events.cancel)
        self._cancel.atexit = False

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._texts)

    @property
    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            InvalidRequest: the stream was not read to its end.

        """
        if self._finished is None:
            raise InvalidRequest("the answer is complete only when its stream has been read to the end")
        return Answer(self.text, self._finished)

    def read(self) -> Answer:
        """Wait for the whole answer."""
        for _ in self:
            pass
        return self.answer

    async def aread(self) -> Answer:
        """Wait for the whole answer in a coroutine."""
        async for _ in self:
            pass
        return self.answer

    def close(self) -> None:
        """End the answer now. Idempotent."""
        self._cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        self._sync = self._sync or iter(self._events)
        for event in self._sync:
            if text := self._take(event):
                return text
        raise StopIteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        self._async = self._async or aiter(self._events)
        async for event in self._async:
            if text := self._take(event):
                return text
        raise StopAsyncIteration

    def _take(self, event: Event) -> str:
        """The text of one event, which is kept."""
        match event:
            case Failed(error=error):
                raise error
            case Finished():
                self._finished = event
                return ""
        self._texts.append(event.text)
        return event.text
