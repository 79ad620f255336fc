"""The seams of the data plane: `Link` (one FIFO connection) and `Ring` (the head's two ends)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hyperlane.wire.frame import Copy, Frame, Message, Sendable

PlacePayload = Callable[[Frame], memoryview]
"""Given a received frame without its payload, returns the writable bytes that the payload goes into (exact length).

Called for each step frame as soon as its header, rows and timings are there, also when the payload is empty, and
perhaps again, to no effect, while the next frame is expected: only what the last call gave is written to.
"""


class Link(Protocol):
    """One FIFO connection between neighbours of the ring. One thread sends, one receives (they may be the same).

    After any error but `LinkClosed` the link is broken for both directions; only `close` is useful then.
    """

    def send(self, message: Sendable) -> None:
        """Hand the whole frame to the network in order; blocks while the peer is slow. Payload buffers are not kept.

        Raises:
            LinkClosed: `close` or `abort` was called on this side, before or meanwhile.
            LinkBroken: the peer or the network ended the connection.

        """
        ...

    def recv(self, place: PlacePayload, *, asleep: bool = False) -> Message:
        """Block for the next step frame, `Copy` or `Fault`; a payload lies where `place` said, and nowhere else.

        `asleep`: whoever waits never looks for the frame meanwhile, as others need the processor.

        Lengths are checked against the limits agreed in HELLO before `place` is called or anything is allocated.
        A `Fault` is returned, not raised: a stage passes it on, then drops its links.

        Raises:
            LinkClosed: closed or aborted on this side, or the peer sent BYE (after all frames before it).
            LinkBroken: EOF without BYE, reset, or time-out, in mid-frame or between frames.
            ProtocolError: the bytes are no frame of this link's epoch and limits; the link is closed.

        """
        ...

    def abort(self) -> None:
        """From any thread: make a blocked `send` or `recv` raise `LinkClosed` at once. Idempotent."""
        ...

    def close(self) -> None:
        """Release everything. Idempotent; sends BYE first if that does not block."""
        ...


class Ring(Protocol):
    """The head's two ends of a pipeline: frames leave towards stage 0 and come back from stage P − 1.

    `send` never blocks and `poll` always reads, so the ring cannot deadlock whatever the socket buffers are.
    One thread calls `send` and `poll`; `wake` may be called from any.
    """

    def send(self, message: Frame | Copy) -> None:
        """Queue a frame; what the kernel takes leaves at once, the rest as `poll` finds room.

        Payload buffers are kept, and must not change, until the frame comes back.

        Raises:
            LinkError: as `Link.send`; frames that were queued are lost.

        """
        ...

    def poll(self, timeout_s: float | None, rehearse: Callable[[], object] | None = None) -> Sequence[Frame]:
        """Frames that have arrived whole, oldest first; empty after `wake` or the timeout (None: no timeout).

        Payloads belong to the caller. May also return nothing for no reason. A `Copy` that has gone round the ring
        is not returned: that it is done everywhere follows from the next frame that comes back.

        `rehearse` may be called, any number of times, while a frame is expected at any moment: it does to no effect
        what the caller will do with it, so that code and data are in the processor's caches then.

        Raises:
            EngineFault: a FAULT came round; after every frame that came before was returned.
            LinkError: as `Link.recv`, after every frame that came before was returned.

        """
        ...

    def wake(self) -> None:
        """From any thread: make a blocked `poll`, or the next one, return at once."""
        ...

    def close(self) -> None:
        """Say BYE where that does not block, and release everything. Idempotent."""
        ...
