"""Links and rings inside one process, for tests: the same bytes and the same promises as over TCP, without sockets."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from hyperlane.errors import EngineFault, HyperlaneError, LinkBroken, LinkClosed, LinkError, ProtocolError
from hyperlane.wire.codec import bye, encode
from hyperlane.wire.frame import Copy, Fault, Frame, Message, Sendable
from hyperlane.wire.kind import Buffer
from hyperlane.wire.limits import Terms
from hyperlane.wire.link import PlacePayload
from hyperlane.wire.reader import FrameReader, place_afresh

CAPACITY_BYTES = 1 << 16
LAST_WORDS_S = 0.2
"""As `ring.LAST_WORDS_S`."""


class Pipe:
    """A byte stream in one direction, as a kernel would hold it. `capacity` None: a writer is never blocked."""

    def __init__(self, capacity: int | None = CAPACITY_BYTES) -> None:
        self._capacity = capacity
        self._pieces: deque[memoryview] = deque()
        self._size = 0
        self._ended = False
        self._woken = False
        self._changed = threading.Condition()

    def write(self, buffers: Sequence[Buffer], *, block: bool = True) -> None:
        """Append everything, waiting for room piece by piece. `block` False: append it whatever the capacity is.

        Raises:
            BrokenPipeError: the pipe has ended, before or meanwhile.

        """
        for buffer in buffers:
            rest = memoryview(bytes(buffer))
            while rest or not self._ended:
                with self._changed:
                    room = len(rest) if self._capacity is None or not block else self._capacity - self._size
                    if self._ended:
                        raise BrokenPipeError("the pipe has ended")
                    if room <= 0 and rest:
                        self._changed.wait()
                        continue
                    self._pieces.append(rest[:room])
                    self._size += len(rest[:room])
                    self._changed.notify_all()
                rest = rest[room:]
                if not len(rest):
                    break

    def read_into(self, view: memoryview, timeout_s: float | None = None) -> int | None:
        """Wait for bytes: how many came, 0 at the end of the stream, None after `wake` or the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._size or self._ended or self._woken, timeout_s)
            self._woken = False
            if not self._size:
                return 0 if self._ended else None
            count = 0
            while self._pieces and count < len(view):
                piece = self._pieces.popleft()
                part = piece[: len(view) - count]
                view[count : count + len(part)] = part
                count += len(part)
                if len(part) < len(piece):
                    self._pieces.appendleft(piece[len(part) :])
            self._size -= count
            self._changed.notify_all()
            return count

    def end(self) -> None:
        """No more bytes: writers fail, readers find the end after what is there."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Make a waiting `read_into`, or the next one, return."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()


class MemoryLink:
    """A `Link` over two pipes."""

    def __init__(self, outgoing: Pipe, incoming: Pipe, terms: Terms) -> None:
        self._outgoing, self._incoming, self._terms = outgoing, incoming, terms
        self._reader = FrameReader(terms)
        self._sending = threading.Lock()
        self._ended = False

    def send(self, message: Sendable) -> None:
        """As `Link.send`."""
        buffers = encode(message)
        with self._sending:
            if self._ended:
                raise LinkClosed("the link is closed")
            try:
                self._outgoing.write(buffers)
            except BrokenPipeError as error:
                raise LinkClosed("closed on this side") if self._ended else LinkBroken("the peer is gone") from error

    def recv(self, place: PlacePayload, *, asleep: bool = False) -> Message:
        """As `Link.recv`."""
        reader = self._reader
        if self._ended:
            raise LinkClosed("the link is closed")
        try:
            while (message := reader.next(place)) is None:
                count = self._incoming.read_into(reader.buffer())
                if self._ended:
                    raise LinkClosed("closed on this side")
                if count == 0:
                    raise LinkBroken(
                        "the peer ended the link " + ("in mid-frame" if reader.in_mid_frame else "silently")
                    )
                reader.received(count or 0)
        except ProtocolError:
            self.abort()
            raise
        except LinkClosed:
            self._ended = True
            raise
        return message

    def abort(self) -> None:
        """As `Link.abort`."""
        self._ended = True
        self._outgoing.end()
        self._incoming.end()

    def close(self) -> None:
        """As `Link.close`."""
        if not self._ended and self._sending.acquire(blocking=False):
            _say_bye(self._outgoing, self._terms.epoch)
            self._sending.release()
        self.abort()


class MemoryRing:
    """A `Ring` over two pipes; the outgoing one should have no capacity, so that no send can block."""

    def __init__(self, outgoing: Pipe, incoming: Pipe, sent: Terms, received: Terms) -> None:
        self._outgoing, self._incoming, self._terms = outgoing, incoming, sent
        self._reader = FrameReader(received)
        self._place = place_afresh(received)
        self._failure: HyperlaneError | None = None
        self._cut = False
        self._closed = False

    def send(self, message: Frame | Copy) -> None:
        """As `Ring.send`."""
        if self._closed:
            raise LinkClosed("the ring is closed")
        try:
            self._outgoing.write(encode(message))
        except BrokenPipeError:
            self._cut = True  # poll tells it, after what is still on its way round

    def poll(self, timeout_s: float | None, rehearse: Callable[[], object] | None = None) -> Sequence[Frame]:
        """As `Ring.poll`."""
        if self._closed:
            raise LinkClosed("the ring is closed")
        if self._failure is not None:
            raise self._failure
        frames: list[Frame] = []
        try:
            count = self._incoming.read_into(self._reader.buffer(), LAST_WORDS_S if self._cut else timeout_s)
            if count == 0 or (self._cut and count is None):
                raise LinkBroken("a stage is gone")
            self._reader.received(count or 0)
            while (message := self._reader.next(self._place)) is not None:
                if isinstance(message, Frame):
                    frames.append(message)
                elif isinstance(message, Fault):
                    raise EngineFault(
                        f"stage {message.stage}, step {message.step}: {message.cause}", stage=message.stage
                    )
        except (LinkError, EngineFault) as error:
            self._failure = error
            if not frames:
                raise
        return frames

    def wake(self) -> None:
        """As `Ring.wake`."""
        self._incoming.wake()

    def close(self) -> None:
        """As `Ring.close`."""
        if not self._closed:
            self._closed = True
            _say_bye(self._outgoing, self._terms.epoch)
            self._outgoing.end()
            self._incoming.end()


def memory_links(terms: Terms, capacity: int | None = CAPACITY_BYTES) -> tuple[MemoryLink, MemoryLink]:
    """The two ends of a link."""
    there, back = Pipe(capacity), Pipe(capacity)
    return MemoryLink(there, back, terms), MemoryLink(back, there, terms)


def memory_ring(terms: Sequence[Terms]) -> tuple[MemoryRing, list[tuple[MemoryLink, MemoryLink]]]:
    """A ring of `len(terms)` links and, for each stage between two of them, its incoming and its outgoing link."""
    pipes = [Pipe(None if index == 0 else CAPACITY_BYTES) for index in range(len(terms))]
    stages = [
        (MemoryLink(Pipe(None), pipes[index], terms[index]), MemoryLink(pipes[index + 1], Pipe(None), terms[index + 1]))
        for index in range(len(terms) - 1)
    ]
    return MemoryRing(pipes[0], pipes[-1], terms[0], terms[-1]), stages


def _say_bye(pipe: Pipe, epoch: int) -> None:
    try:
        pipe.write([bye(epoch)], block=False)
    except BrokenPipeError:
        return
