"""The head's two ends of a pipeline over TCP, plain or encrypted: never blocks in a send, always reads.

Knows no request and no plan.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace

from hyperlane.core import Address
from hyperlane.errors import EngineFault, HyperlaneError, LinkBroken, LinkClosed, LinkError
from hyperlane.wire.anticipation import Anticipation, await_frame, step_aside
from hyperlane.wire.codec import bye, encode
from hyperlane.wire.dial import dial
from hyperlane.wire.frame import Copy, Fault, Frame, Hello
from hyperlane.wire.kind import Buffer
from hyperlane.wire.limits import Terms
from hyperlane.wire.reader import FrameReader, place_afresh
from hyperlane.wire.sockets import rest_after, send_some
from hyperlane.wire.tcp import peer_name
from hyperlane.wire.tls import ClientTls, Stream, TlsStream

RECEIVES_PER_POLL = 64
"""After so many receives `poll` returns what it has, however much more is there: commits must not starve."""

STAGING_BYTES = 1 << 15
"""The head's reader takes several answers with one system call; at most this much of a frame is copied once."""

ALSO_EVERY = 8
"""Of so many looks for a frame one is for everything else: a new request, room to send."""

LAST_WORDS_S = 0.2
"""A stage that fails sends FAULT onward and drops both links: its cause may arrive after the other link's end."""


class TcpRing:
    """Two connections whose HELLO is done; frames go out on `upstream` and come back on `downstream`. See `Ring`."""

    def __init__(self, upstream: tuple[Stream, Terms], downstream: tuple[Stream, Terms]) -> None:
        self._up, self._up_terms = upstream
        self._down, down_terms = downstream
        # Nothing but FAULT and BYE comes back on the link to stage 0.
        self._up_reader = FrameReader(replace(self._up_terms, kinds=frozenset()))
        self._reader = FrameReader(down_terms, STAGING_BYTES)
        self._place = place_afresh(down_terms)
        self._names = {
            self._up: f"stage 0 at {peer_name(self._up)}",
            self._down: f"the last stage at {peer_name(self._down)}",
        }
        self._backlog: list[Buffer] = []
        self._failure: HyperlaneError | None = None
        self._closed = False
        self._expected = Anticipation()
        self._sent_s = self._heard_s = 0.0
        self._waited_s: float | None = None
        self._count: int | None = None
        """Bytes that were received already, while looking for them."""
        self._looks = 0
        self._waker, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for sock in (self._up, self._down, self._waker, self._woken):
            sock.setblocking(False)
        for sock in (self._up, self._down, self._woken):
            self._selector.register(sock, selectors.EVENT_READ)
        self._down_key = self._selector.get_key(self._down), 0

    @classmethod
    def connect(
        cls,
        first: Address,
        to_first: Hello,
        last: Address,
        from_last: Hello,
        timeout_s: float,
        *,
        tls: tuple[ClientTls | None, ClientTls | None] = (None, None),
    ) -> TcpRing:
        """Dial stage 0 (role UPSTREAM) and the last stage (role DOWNSTREAM); they may be the same.

        `tls`: for the one and the other, None where the link stays within this machine.

        Raises:
            HyperlaneError: as `dial.connect`.

        """
        upstream = dial(first, to_first, timeout_s, tls=tls[0])
        try:
            downstream = dial(last, from_last, timeout_s, tls=tls[1])
        except HyperlaneError:
            upstream[0].close()
            raise
        return cls(upstream, downstream)

    def send(self, message: Frame | Copy) -> None:
        """As `Ring.send`."""
        if self._closed:
            raise LinkClosed("the ring is closed")
        if self._failure is not None:
            return
        buffers = encode(message)
        if self._backlog:
            self._backlog += buffers
        else:
            self._backlog = buffers
            alone, self._sent_s = self._heard_s == self._sent_s, time.perf_counter()
            self._flush()
            if alone:
                step_aside()
            if self._unsent():
                self._selector.modify(self._up, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def poll(self, timeout_s: float | None, rehearse: Callable[[], object] | None = None) -> Sequence[Frame]:
        """As `Ring.poll`."""
        if self._closed:
            raise LinkClosed("the ring is closed")
        frames: list[Frame] = []
        if self._failure is None:
            self._turn(timeout_s, frames, rehearse)
        if self._failure is not None and not frames:
            raise self._failure
        return frames

    def wake(self) -> None:
        """As `Ring.wake`."""
        with suppress(OSError):  # full: it is awake anyway; closed: nobody sleeps
            self._waker.send(b"x")

    def close(self) -> None:
        """As `Ring.close`."""
        if self._closed:
            return
        self._closed = True
        self._selector.close()
        for sock, epoch in ((self._up, self._up_terms.epoch), (self._down, self._up_terms.epoch)):
            with suppress(OSError):  # a peer that is gone or full does without BYE
                if not (sock is self._up and self._backlog):
                    sock.send(bye(epoch))
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._waker.close()
        self._woken.close()

    def _turn(self, timeout_s: float | None, frames: list[Frame], rehearse: Callable[[], object] | None) -> None:
        buffered = [stream for stream in (self._up, self._down) if _pending(stream)]
        selected = self._select(0.0 if buffered else timeout_s, rehearse)
        if self._count is not None:
            count, self._count = self._count, None
            self._read(self._down, self._reader, frames, count)
            if frames and self._failure is None:
                return
        ready = {key.fileobj for key, events in selected if events & selectors.EVENT_READ}
        ready.update(buffered)  # decrypted bytes count, though their socket has nothing more to read
        if self._down in ready and self._failure is None:
            self._read(self._down, self._reader, frames)
        if len(selected) > 1 or self._failure is not None or not frames:
            self._rest_of_turn(selected, ready, frames)

    def _rest_of_turn(
        self, selected: Sequence[tuple[selectors.SelectorKey, int]], ready: Collection[object], frames: list[Frame]
    ) -> None:
        """All but frames that came back."""
        if self._woken in ready:
            with suppress(BlockingIOError):
                self._woken.recv(4096)
        if self._up in ready and self._failure is None:
            self._read(self._up, self._up_reader, frames)
        if any(events & selectors.EVENT_WRITE for _, events in selected) and self._failure is None:
            self._flush()
            if not self._unsent():
                self._selector.modify(self._up, selectors.EVENT_READ)
        if isinstance(self._failure, LinkError):
            self._hear_last_words(frames)

    def _select(
        self, timeout_s: float | None, rehearse: Callable[[], object] | None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        """Sleep until something happens; be awake when the frame that left last is about to come back."""
        sent_s = self._sent_s
        if timeout_s == 0.0 or self._heard_s == sent_s:
            return self._selector.select(timeout_s)
        if self._waited_s is not None:
            self._expected.note(self._waited_s)
            self._waited_s = None
        if not (selected := self._selector.select(0.0)):
            self._reader.expect()
            selected = await_frame(self._expected, self._look, sent_s, lambda: self._rehearse(rehearse), timeout_s)
        if self._count is not None or any(key.fileobj is self._down for key, _ in selected):
            self._waited_s = time.perf_counter() - sent_s
            self._heard_s = sent_s
        return selected

    def _look(self, seconds: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait so long at most for anything. While it looks, to receive is the shortest way to see a frame."""
        self._looks += 1
        if seconds == 0.0 and self._looks % ALSO_EVERY and isinstance(self._down, socket.socket):
            try:
                self._count = self._down.recv_into(self._reader.buffer())
            except BlockingIOError:
                return []
            except OSError as error:
                self._fail(LinkBroken(f"receiving from {self._names[self._down]} failed: {error.strerror or error}"))
            return [self._down_key]
        return self._selector.select(seconds)

    def _rehearse(self, rehearse: Callable[[], object] | None) -> None:
        self._reader.rehearse()
        if rehearse is not None:
            rehearse()

    def _unsent(self) -> bool:
        return bool(self._backlog) or (isinstance(self._up, TlsStream) and self._up.unsent)

    def _flush(self) -> None:
        """Give the kernel what it takes. A failure is told by `poll`, which may know a better reason."""
        try:
            while self._backlog:
                sent = send_some(self._up, self._backlog)
                self._backlog = rest_after(self._backlog, sent)
            if isinstance(self._up, TlsStream):
                self._up.flush()
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(LinkBroken(f"sending to {self._names[self._up]} failed: {error.strerror or error}"))

    def _read(self, sock: Stream, reader: FrameReader, frames: list[Frame], count: int | None = None) -> None:
        """Receive what is there; `count` bytes of it may be received already."""
        try:
            for _ in range(RECEIVES_PER_POLL):
                buffer = reader.buffer()
                if count is None:
                    count = sock.recv_into(buffer)
                if not count:
                    where = "in the middle of a frame" if reader.in_mid_frame else "without BYE"
                    raise LinkBroken(f"the connection was ended {where}")
                reader.received(count)
                while (message := reader.next(self._place)) is not None:
                    if isinstance(message, Frame):
                        frames.append(message)
                    elif isinstance(message, Fault):
                        raise EngineFault(
                            f"stage {message.stage}, step {message.step}: {message.cause}", stage=message.stage
                        )
                if count < len(buffer) and frames:
                    return
                count = None
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(LinkBroken(f"receiving from {self._names[sock]} failed: {error.strerror or error}"))
        except LinkError as error:
            self._fail(type(error)(f"{self._names[sock]}: {error}"))
        except EngineFault as error:
            self._fail(error)

    def _fail(self, failure: HyperlaneError) -> None:
        self._failure = failure

    def _take_failure(self) -> HyperlaneError | None:
        failure, self._failure = self._failure, None
        return failure

    def _hear_last_words(self, frames: list[Frame]) -> None:
        """A FAULT that is still on its way round says more than the end of a connection."""
        failure, until = self._take_failure(), time.monotonic() + LAST_WORDS_S
        self._selector.unregister(self._up)
        self._selector.unregister(self._woken)
        while self._failure is None and (left := until - time.monotonic()) > 0:
            if _pending(self._down) or self._selector.select(left):
                self._read(self._down, self._reader, frames)
        if not isinstance(self._failure, EngineFault):
            self._failure = failure


def _pending(stream: Stream) -> bool:
    return isinstance(stream, TlsStream) and stream.pending
