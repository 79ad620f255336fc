"""From the events of a request to its HTTP response, streamed or whole; and to cancelling when the client leaves.

Knows no endpoint: how text is wrapped is asked of `Chunks`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hyperlane.api.answers import Answers, Tally, failure_of
from hyperlane.api.chunks import SILENCE, Chunks, error_event
from hyperlane.api.errors import problem_of
from hyperlane.core import Event, Finished, FinishReason, TextDelta, TokenChoice, Usage

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@asynccontextmanager
async def watched(answers: Answers, receive: Receive) -> AsyncIterator[Answers]:
    """Run the sequences of a request whose client is watched: when it goes away they are cancelled at once."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        answers.close()

    async with answers:
        watcher = asyncio.create_task(watch())
        try:
            yield answers
        finally:
            watcher.cancel()


class StreamedAnswer(Response):
    """Server-sent events. A failure before the first of them is a plain HTTP error, a later one an error event.

    A reader that is slower than the model holds the writer back, and events wait where their number is bounded.
    """

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, chunks: Chunks, tally: Tally) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._answers = answers
        self._chunks = chunks
        self._tally = tally
        self._failed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with watched(self._answers, receive) as answers:
            batch = await answers.batch()
            if batch is None:
                raise ClientDisconnect
            if batch and (error := failure_of(batch[0][1])):
                await problem_of(error).response()(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            data = self._chunks.opening()
            while batch is not None and not self._failed:
                await send({"type": "http.response.body", "body": data + self._encoded(batch), "more_body": True})
                data = b""
                batch = await answers.batch()
            ending = b"" if self._failed else self._chunks.ending(self._tally.total)
            await send({"type": "http.response.body", "body": ending, "more_body": False})

    def _encoded(self, batch: Sequence[tuple[int, Event]]) -> bytes:
        """All events of a batch, for one write."""
        out = [] if batch else [SILENCE]
        for index, event in batch:
            if isinstance(event, TextDelta):
                if event.text or event.logprobs:
                    out.append(self._chunks.piece(index, event))
            elif error := failure_of(event):
                self._failed = True
                out.append(error_event(problem_of(error)))
                break
            elif isinstance(event, Finished):
                self._tally.add(index, event.usage)
                out.append(self._chunks.closing(index, event.reason))
        return b"".join(out)


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole sequence of an answer."""

    text: str
    logprobs: tuple[TokenChoice, ...]
    reason: FinishReason


async def whole_answer(answers: Answers, tally: Tally, receive: Receive) -> tuple[list[Choice], Usage]:
    """Wait for every sequence to end.

    Raises:
        ClientDisconnect: the client went away; the sequences were cancelled.
        Exception: a sequence failed, with what it failed with.

    """
    deltas: list[list[TextDelta]] = [[] for _ in range(len(answers))]
    reasons: dict[int, FinishReason] = {}
    async with watched(answers, receive):
        while (batch := await answers.batch()) is not None:
            for index, event in batch:
                if error := failure_of(event):
                    raise error
                if isinstance(event, TextDelta):
                    deltas[index].append(event)
                elif isinstance(event, Finished):
                    reasons[index] = event.reason
                    tally.add(index, event.usage)
    if len(reasons) < len(answers):
        raise ClientDisconnect
    return [_joined(parts, reasons[index]) for index, parts in enumerate(deltas)], tally.total


def _joined(parts: Sequence[TextDelta], reason: FinishReason) -> Choice:
    text = "".join(part.text for part in parts)
    return Choice(text, tuple(choice for part in parts for choice in part.logprobs), reason)
