"""`Stream`: the events of one request, handed from the head's thread to one reader, a thread or a coroutine.

Owns waiting, waking and the bound on what a slow reader leaves behind. Knows no token, no text rule and no slot.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from hyperlane.core import Event, Failed, Finished, TextDelta

COALESCE_AT = 64
"""Deltas that may wait for a reader one by one; the next one melts them into a single delta."""

INTERRUPTIBLE_S = 0.2
"""Longest uninterrupted wait of a reading thread, seconds: Windows delivers Ctrl-C only between two waits."""


class Stream(AsyncIterator[Event], Iterator[Event]):
    """The events of one request (`core.EventStream`). One side publishes, one reader iterates.

    What a reader has not fetched is kept whole, but as few events: its memory is that of the answer's text and
    token ids, which the context bounds, whatever the reader's pace. Publishing never blocks.
    """

    __slots__ = ("_cancel", "_ended", "_events", "_ready", "_waiter")

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._events: deque[Event] = deque()
        self._ready = threading.Condition(threading.Lock())
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        self._ended = False

    def publish(self, event: Event) -> None:
        """Append an event and wake the reader. Events after the last one (`Finished`, `Failed`) are dropped."""
        with self._ready:
            if self._ended:
                return
            self._ended = isinstance(event, Finished | Failed)
            if len(self._events) >= COALESCE_AT and isinstance(event, TextDelta):
                waiting = [delta for delta in self._events if isinstance(delta, TextDelta)]
                self._events = deque([_merged([*waiting, event])])
            else:
                self._events.append(event)
            waiter, self._waiter = self._waiter, None
            self._ready.notify()
        if waiter is not None:
            _wake(*waiter)

    def cancel(self) -> None:
        """End the request: its slot is free within one step. From any thread, idempotent; no effect after the end."""
        if not self._ended:
            self._cancel()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Event:
        with self._ready:
            while not self._events:
                if self._ended:
                    raise StopIteration
                self._ready.wait(INTERRUPTIBLE_S)
            return self._events.popleft()

    def last(self, timeout_s: float) -> Event:
        """Wait for the end and drop all that comes before it. For a thread that wants to know only how it ended.

        Raises:
            TimeoutError: the request has not ended within the time; it goes on.

        """
        until_s = time.monotonic() + timeout_s
        with self._ready:
            while not self._ended:
                left_s = until_s - time.monotonic()
                if left_s <= 0.0:
                    raise TimeoutError(f"the request has not ended within {timeout_s:g} s")
                self._ready.wait(min(left_s, INTERRUPTIBLE_S))
            event = self._events[-1]
            self._events.clear()
            return event

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        while True:
            with self._ready:
                if self._events:
                    return self._events.popleft()
                if self._ended:
                    raise StopAsyncIteration
                loop = asyncio.get_running_loop()
                woken: asyncio.Future[None] = loop.create_future()
                self._waiter = (loop, woken)
            await woken


def _wake(loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> None:
    try:
        loop.call_soon_threadsafe(_resolve, woken)
    except RuntimeError:
        if not loop.is_closed():  # a closed loop has no reader left to wake
            raise


def _resolve(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _merged(deltas: Sequence[TextDelta]) -> TextDelta:
    return TextDelta(
        text="".join(delta.text for delta in deltas),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        logprobs=tuple(choice for delta in deltas for choice in delta.logprobs),
    )
