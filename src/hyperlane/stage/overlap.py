"""What a stage does beside computing a large frame: receive the next one, send the last one.

Owns a helper thread for each direction, made when the first large frame comes, and says which bank of the engine's
buffers a frame has. Knows links and sizes, no engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, TypeVar

from hyperlane.core import ElementType, Row, StageSpec
from hyperlane.errors import LinkError
from hyperlane.wire.frame import Message, Sendable
from hyperlane.wire.link import Link, PlacePayload
from hyperlane.wire.packing import token_bytes

T = TypeVar("T")

FROM_BYTES = 64 << 10
"""Frames with so much payload have two buffers each way. `benchmarks/overlap.py` shows from where on that pays."""

NEVER = 1 << 62
"""Instead of `FROM_BYTES`: receive, compute and send in turn, whatever the size."""


class Aside(Generic[T]):
    """A thread that makes calls for another one, in order. Daemon: a call that hangs keeps no process from its end."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def begin(self, call: Callable[[], T]) -> Future[T]:
        """Make this call after those before it."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    def end(self) -> None:
        """Wait for what was begun, whatever comes of it, and end the thread."""
        self._calls.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (begun := self._calls.get()) is not None:
            future, call = begun
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 (whoever asks for the result gets it)
                future.set_exception(error)


class Overlap:
    """The helpers of one stage's loop, and which bank the next frame has. Used by the loop's thread.

    While one frame is computed at most one is being sent and one received. Banks take turns, so that the buffers of a
    frame are free again when it is its bank's turn.
    """

    def __init__(
        self, spec: StageSpec, element: ElementType, upstream: Link, downstream: Link, from_bytes: int = FROM_BYTES
    ) -> None:
        """`from_bytes`: the least payload of a large frame, or `NEVER`."""
        self._name = f"stage-{spec.index}"
        self._upstream, self._downstream = upstream, downstream
        hidden = spec.model.hidden
        self._many_in = NEVER if spec.is_first else -(-from_bytes // token_bytes(hidden, spec.precision_in, element))
        self._many_out = NEVER if spec.is_last else -(-from_bytes // token_bytes(hidden, spec.precision_out, element))
        self._bank = 0
        self._receiver: Aside[Message] | None = None
        self._sender: Aside[None] | None = None
        self._sent: Future[None] | None = None
        self.coming: Future[Message] | None = None
        """The frame after the one that was computed last, where it is received beside it."""

    def bank_of(self, rows: Sequence[Row]) -> int | None:
        """Which bank a frame with these rows has, with no other one being computed; None: it needs none."""
        tokens = sum(row.count for row in rows)
        if self._sent is None and tokens < self._many_in and tokens < self._many_out:
            return None
        return self.next_bank

    @property
    def next_bank(self) -> int:
        """The bank of a frame that is received while another one is computed."""
        return 1 - self._bank

    def compute(self, rows: Sequence[Row], bank: int, place: PlacePayload) -> None:
        """A frame of a bank is about to be computed. If it is large, the next one is received into where `place` says.

        That is called by another thread.
        """
        self._bank = bank
        if sum(row.count for row in rows) >= self._many_in:
            if self._receiver is None:
                self._receiver = Aside(f"{self._name}-receives")
            self.coming = self._receiver.begin(lambda: self._upstream.recv(place, asleep=True))

    def received(self) -> Message:
        """What was `coming`, once it is there. Raises as `Link.recv`."""
        assert self.coming is not None
        message = self.coming.result()
        self.coming = None
        return message

    def send(self, message: Sendable, rows: Sequence[Row] = ()) -> None:
        """Send after what is being sent, a large frame beside whatever follows; `rows`: of a frame that was computed.

        Raises:
            LinkError: as `Link.send`, for this message or the one before.

        """
        self.finish_sending()
        if sum(row.count for row in rows) < self._many_out:
            self._downstream.send(message)
            return
        if self._sender is None:
            self._sender = Aside(f"{self._name}-sends")
        self._sent = self._sender.begin(lambda: self._send(message))

    def finish_sending(self) -> None:
        """Wait for what is being sent. Raises LinkError as `Link.send`."""
        sent, self._sent = self._sent, None
        if sent is not None:
            sent.result()

    def end(self) -> None:
        """Let what is being sent go, give up what is received, and end the helpers."""
        if self._sender is not None:
            self._sender.end()
        if self._receiver is not None:
            if self.coming is not None and not self.coming.done():
                self._upstream.abort()
            self._receiver.end()

    def _send(self, message: Sendable) -> None:
        try:
            self._downstream.send(message)
        except LinkError:
            self._upstream.abort()  # the loop may wait there
            raise
