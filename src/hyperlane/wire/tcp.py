"""A `Link` over a TCP connection, plain or encrypted, whose HELLO is done.

Small frames cost one system call to send and one to receive.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress

from hyperlane.errors import LinkBroken, LinkClosed, LinkError, ProtocolError
from hyperlane.wire.anticipation import Anticipation, await_frame, step_aside
from hyperlane.wire.codec import bye, encode, size_of
from hyperlane.wire.frame import Message, Sendable
from hyperlane.wire.limits import Terms
from hyperlane.wire.link import PlacePayload
from hyperlane.wire.reader import FrameReader
from hyperlane.wire.sockets import gather_of, plain_host, rest_after, send_some
from hyperlane.wire.tls import Stream, TlsStream


class TcpLink:
    """One connection of one epoch; takes over a connected blocking stream. See `Link` for what is promised."""

    def __init__(self, sock: Stream, terms: Terms) -> None:
        sock.settimeout(None)
        self._sock = sock
        self._terms = terms
        self._reader = FrameReader(terms)
        self._sending = threading.Lock()
        self._ended = False
        self._peer = peer_name(sock)
        self._expected = Anticipation()
        self._poll = _poll_of(sock)
        self._gather = gather_of(sock)
        self._count: int | None = None
        self._waited_s: float | None = None

    @property
    def terms(self) -> Terms:
        """What was agreed in HELLO."""
        return self._terms

    @property
    def peer(self) -> str:
        """HOST:PORT of the other end, for messages."""
        return self._peer

    def send(self, message: Sendable) -> None:
        """As `Link.send`."""
        buffers = encode(message)
        with self._sending:
            try:
                sent = self._gather(buffers)
                # A blocking socket takes everything at once, unless there are very many buffers or a signal came.
                while buffers and sent < sum(map(size_of, buffers)):
                    buffers = rest_after(buffers, sent)
                    sent = send_some(self._sock, buffers)
            except OSError as error:
                raise self._error("sending to", error) from error
        step_aside()

    def recv(self, place: PlacePayload, *, asleep: bool = False) -> Message:
        """As `Link.recv`."""
        reader = self._reader
        if self._ended:
            raise LinkClosed(f"the link with {self._peer} is closed")
        try:
            if asleep:
                count = self._waited_s = None
            else:
                count = None if reader.in_mid_frame else self._await(place)
            message = reader.next(place) if reader.in_mid_frame else None
            while message is None:
                if count is None:
                    count = self._sock.recv_into(reader.buffer())
                if not count:
                    raise self._end_of_stream()
                reader.received(count)
                count = None
                message = reader.next(place)
        except ProtocolError as error:
            self._ended = True  # so that no BYE makes this look like an orderly end to the peer
            self.close()
            raise ProtocolError(f"{self._peer}: {error}") from error
        except LinkClosed:
            self._ended = True
            raise
        except OSError as error:
            raise self._error("receiving from", error) from error
        return message

    def abort(self) -> None:
        """As `Link.abort`."""
        self._ended = True
        with suppress(OSError):  # it may be closed or reset already
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """As `Link.close`."""
        ended, self._ended = self._ended, True
        if not ended and self._sending.acquire(blocking=False):
            with suppress(OSError):  # nobody waits for this BYE: a peer that is gone or full does without
                self._sock.setblocking(False)
                self._sock.send(bye(self._terms.epoch))
            self._sending.release()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _await(self, place: PlacePayload) -> int | None:
        """Until there is something to receive, or the end; how many bytes were received already, if any were.

        What this takes once a frame is there is kept short.
        """
        poll = self._poll
        if poll is None or (isinstance(self._sock, TlsStream) and self._sock.pending):
            return None
        if self._waited_s is not None:
            self._expected.note(self._waited_s)
        self._count = None
        began_s = time.perf_counter()
        if not poll.poll(0):
            self._reader.expect()
            self._reader.rehearse(place)
            await_frame(self._expected, self._look, began_s, lambda: self._reader.rehearse(place))
        self._waited_s = time.perf_counter() - began_s
        return self._received()

    def _received(self) -> int | None:
        """How many bytes `_look` received."""
        return self._count

    def _look(self, seconds: float | None) -> object:
        """Wait so long at most for something to receive. While it looks, to receive is the shortest way to see it."""
        if seconds == 0.0 and isinstance(self._sock, socket.socket):
            try:
                self._count = self._sock.recv_into(self._reader.buffer(), 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            return True
        assert self._poll is not None
        return self._poll.poll(None if seconds is None else seconds * 1000)

    def _end_of_stream(self) -> LinkError:
        if self._ended:
            return LinkClosed(f"the link with {self._peer} was closed on this side")
        where = "in the middle of a frame" if self._reader.in_mid_frame else "without BYE"
        return LinkBroken(f"{self._peer} ended the connection {where}")

    def _error(self, doing: str, error: OSError) -> LinkError:
        if self._ended:
            return LinkClosed(f"the link with {self._peer} was closed on this side")
        return LinkBroken(f"{doing} {self._peer} failed: {error.strerror or error}")


def _poll_of(sock: Stream) -> select.poll | None:
    """Tells whether there is something to receive; None where the system has no `poll`."""
    if not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return poll


def peer_name(sock: Stream) -> str:
    """HOST:PORT of the other end, or what can be said of a socket that has none."""
    try:
        name = sock.getpeername()
    except OSError:
        return "a peer that is gone"
    return f"{plain_host(name[0])}:{name[1]}" if isinstance(name, tuple) else "a local peer"
