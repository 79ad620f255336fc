"""The event streams of one HTTP request, merged in order of arrival; and what becomes of them when it ends early.

Owns cancelling. Knows no HTTP and no JSON.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Sequence
from typing import Protocol, Self

from hyperlane.api.errors import Cancelled
from hyperlane.core import Event, EventStream, Failed, Finished, FinishReason, TextDelta, Usage
from hyperlane.errors import HyperlaneError

HELD_EVENTS = 64
"""Events that are taken ahead of the reader; beyond that they wait in the streams, which bound them."""


class Meter(Protocol):
    """Whoever pays for a request's sequences, as `limits.Account` does."""

    def spend(self, tokens: int) -> None:
        """Tokens of an answer."""
        ...

    def ended(self, now_s: float) -> None:
        """One sequence ended, however; on the monotonic clock."""
        ...


class Answers:
    """The events of the sequences of one request. Used as a context manager, which cancels what has not ended.

    Belongs to one event loop. `close` and `fail` may be called while another coroutine waits in `batch`.
    """

    def __init__(
        self, streams: Sequence[EventStream], heartbeat_s: float = math.inf, meter: Meter | None = None
    ) -> None:
        """`heartbeat_s`: silence after which a reader gets an empty batch. `meter`: told of tokens and ends, once."""
        self._streams = streams
        self._meter = meter
        self._heartbeat_s = heartbeat_s
        self._open = set(range(len(streams)))
        self._held: list[tuple[int, Event]] = []
        self._room = asyncio.Event()
        self._waiter: asyncio.Future[None] | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def running(self) -> bool:
        """Whether a sequence has not ended."""
        return bool(self._open)

    async def __aenter__(self) -> Self:
        self._pumps = [asyncio.create_task(self._pump(*numbered)) for numbered in enumerate(self._streams)]
        for index, pump in enumerate(self._pumps):
            pump.add_done_callback(functools.partial(self._end, index))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up: cancel every sequence that has not ended; `batch` returns None from now on. Idempotent."""
        self._closed = True
        for index in tuple(self._open):
            self._streams[index].cancel()
            self._finish(index)
        for pump in self._pumps:
            pump.cancel()
        self._wake()

    def fail(self, error: HyperlaneError) -> None:
        """End the request with an error, unless it has ended."""
        if self._open:
            index = min(self._open)
            self._streams[index].cancel()
            self._put(index, Failed(error))

    async def batch(self) -> list[tuple[int, Event]] | None:
        """All events that have come, each with its sequence's index; waits for one.

        Returns an empty list after a long silence, and None when all sequences have ended or `close` was called.
        """
        if not self._held and self._open:
            await self._wait()
        if self._closed or not (self._held or self._open):
            return None
        batch, self._held = self._held, []
        self._room.set()
        return batch

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        heartbeat = loop.call_later(self._heartbeat_s, self._wake) if self._heartbeat_s < math.inf else None
        try:
            await self._waiter
        finally:
            if heartbeat is not None:
                heartbeat.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _pump(self, index: int, stream: EventStream) -> None:
        async for event in stream:
            self._put(index, event)
            if len(self._held) >= HELD_EVENTS:
                self._room.clear()
                await self._room.wait()

    def _put(self, index: int, event: Event) -> None:
        self._held.append((index, event))
        if not isinstance(event, TextDelta):
            self._finish(index)
        elif self._meter is not None:
            self._meter.spend(len(event.tokens))
        self._wake()

    def _finish(self, index: int) -> None:
        if index in self._open:
            self._open.remove(index)
            if self._meter is not None:
                self._meter.ended(time.monotonic())

    def _end(self, index: int, pump: asyncio.Task[None]) -> None:
        """A stream that broke, or that ended without saying how, must not leave its client waiting."""
        error = None if pump.cancelled() else pump.exception()
        if index in self._open and not pump.cancelled():
            cause = error if isinstance(error, Exception) else RuntimeError(f"sequence {index} ended without a result")
            self._streams[index].cancel()
            self._put(index, Failed(cause))


def failure_of(event: Event) -> Exception | None:
    """The error that an event ends its request with, if it does."""
    if isinstance(event, Failed):
        return event.error
    if isinstance(event, Finished) and event.reason is FinishReason.CANCELLED:
        return Cancelled("The request was cancelled by the server.")
    return None


class Tally:
    """Token counts of a request. `n` sequences share a prompt, which counts once; pauses they have side by side."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._prompt = self._cached = self._completion = 0
        self._paused_s = 0.0

    def add(self, index: int, usage: Usage) -> None:
        """Count a finished sequence."""
        self._completion += usage.completion_tokens
        self._paused_s = max(self._paused_s, usage.paused_s)
        if index % self._n == 0:
            self._prompt += usage.prompt_tokens
            self._cached += usage.cached_tokens

    @property
    def total(self) -> Usage:
        """What was counted."""
        return Usage(self._prompt, self._completion, self._cached, self._paused_s)
