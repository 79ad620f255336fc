"""A worker's data port: who connects must say HELLO in time, and is then admitted or refused by a callback.

Knows no stage. A stranger costs one socket and a few hundred bytes (with TLS, some tens of KiB and a millisecond of
computing) until the deadline, and only so many at once.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from hyperlane import __version__
from hyperlane.core import Address
from hyperlane.errors import ConfigError, NotTrusted, ProtocolError, VersionMismatch
from hyperlane.wire.codec import FAULT, HEADER, plain, printable, read_header
from hyperlane.wire.frame import Hello
from hyperlane.wire.hello import HELLO_BYTES, answer_to, check_hello_header, encode_hello, read_hello
from hyperlane.wire.kind import Kind, Role
from hyperlane.wire.limits import Limits
from hyperlane.wire.peer import Peer
from hyperlane.wire.probe_echo import ProbeEcho
from hyperlane.wire.sockets import SILENCE_S, listening_here, listening_socket, plain_host, tune
from hyperlane.wire.strangers import Strangers
from hyperlane.wire.tcp import TcpLink, peer_name
from hyperlane.wire.tls import ServerTls, Stream, TlsStream, why

HELLO_WITHIN_S = 5.0
MAX_UNFINISHED = 16
BACKLOG = 512

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a link is not admitted: one line that its dialler is told."""

    reason: str


Admit = Callable[[Hello, Peer | None], Limits | Refusal]
"""Whether a link may be opened, and the limits that hold on it (none larger than the HELLO's). Must not block.

The peer is whom the certificate names, None on a plain connection.
What it promises away (one link for each role of a stage) it must reserve: `deliver` always follows.
"""

Deliver = Callable[[Hello, TcpLink], None]
"""Takes over an admitted link; its `recv` may already fail because the dialler went away. Must not block."""


class _Handshake:
    """One connection that has not said its HELLO yet."""

    __slots__ = ("data", "deadline", "host", "sock")

    def __init__(self, sock: Stream, host: str, deadline: float) -> None:
        self.sock = sock
        self.host = host
        self.deadline = deadline
        self.data = bytearray()


class DataListener:
    """Listens from construction until `close`; one thread does all handshakes, so that none can hold up another."""

    def __init__(
        self,
        address: Address,
        admit: Admit,
        deliver: Deliver,
        *,
        hello_within_s: float = HELLO_WITHIN_S,
        max_unfinished: int = MAX_UNFINISHED,
        silence_s: float = SILENCE_S,
        tls: ServerTls | None = None,
    ) -> None:
        """With `tls`, whoever speaks anything else, or shows no certificate of the authority, is refused.

        Raises:
            ConfigError: the port is in use, or the address is not this machine's.

        """
        self._tls, self._strangers = tls, Strangers()
        self._admit, self._deliver, self._echo = admit, deliver, ProbeEcho()
        self._hello_within_s, self._max_unfinished, self._silence_s = hello_within_s, max_unfinished, silence_s
        self._sock = _listen(address)
        host, port = self._sock.getsockname()[:2]
        self.address = Address(host, port)
        here = listening_here(self.address, BACKLOG) if tls is None else None
        self._waker, self._woken = socket.socketpair()
        self._unfinished: dict[Stream, _Handshake] = {}
        self._selector = selectors.DefaultSelector()
        self._doors = [self._sock] if here is None else [self._sock, here]
        for sock in (*self._doors, self._woken):
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="data-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, drop unfinished handshakes; links that were delivered live on. Idempotent."""
        if not self._thread.is_alive():
            return
        self._waker.send(b"x")
        self._thread.join()
        self._echo.close()
        self._waker.close()

    def _run(self) -> None:
        closing = False
        while not closing:
            for key, _ in self._selector.select(self._next_deadline()):
                if key.fileobj is self._woken:
                    closing = True
                elif key.fileobj in self._doors:
                    self._accept(key.fileobj)
                else:
                    handshake = self._unfinished.get(key.fileobj)  # type: ignore[call-overload]
                    if handshake is not None:
                        self._progress(handshake)
            self._drop_late()
        for handshake in list(self._unfinished.values()):
            self._forget(handshake).close()
        self._selector.close()
        for sock in (*self._doors, self._woken):
            sock.close()

    def _next_deadline(self) -> float | None:
        # They are in the order of their arrival, so the first one is the next to be late.
        for handshake in self._unfinished.values():
            return max(0.0, handshake.deadline - time.monotonic())
        return None

    def _accept(self, door: socket.socket) -> None:
        # Several at a time, so that a crowd at the door does not overflow the kernel's queue.
        for _ in range(self._max_unfinished):
            try:
                sock, name = door.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return  # that was everybody, or who knocked has gone again
            except OSError as error:
                log.warning("data port %s: a connection could not be accepted: %s", self.address, error)
                time.sleep(0.05)  # out of file descriptors: trying again at once would spin
                return
            host, now = plain_host(name[0]) if name else "this machine", time.monotonic()
            if self._strangers.barred(host, now):
                sock.close()
                continue
            sock.setblocking(False)
            if len(self._unfinished) >= self._max_unfinished:
                self._forget(self._one_too_many()).close()
            stream = TlsStream(sock, self._tls) if self._tls else sock
            handshake = _Handshake(stream, host, now + self._hello_within_s)
            self._unfinished[stream] = handshake
            self._selector.register(stream, selectors.EVENT_READ)
            self._progress(handshake)

    def _one_too_many(self) -> _Handshake:
        """The oldest of the host that has most: who means it sends HELLO with its first packets, and has one."""
        busiest = Counter(handshake.host for handshake in self._unfinished.values()).most_common(1)[0][0]
        return next(handshake for handshake in self._unfinished.values() if handshake.host == busiest)

    def _progress(self, handshake: _Handshake) -> None:
        try:
            while len(handshake.data) < HELLO_BYTES:
                piece = handshake.sock.recv(HELLO_BYTES - len(handshake.data))
                if not piece:
                    self._forget(handshake).close()
                    return
                handshake.data += piece
                if len(handshake.data) >= HEADER.size:
                    check_hello_header(read_header(handshake.data))
            self._answer(handshake)
        except BlockingIOError:
            return
        except (OSError, ProtocolError, VersionMismatch, NotTrusted) as error:
            self._turn_away(handshake, why(error) if isinstance(error, OSError) else str(error))

    def _answer(self, handshake: _Handshake) -> None:
        hello = read_hello(read_header(handshake.data), bytes(handshake.data[HEADER.size :]))
        sock = self._forget(handshake)
        if hello.role is Role.PROBE:
            self._measure(sock, hello)
            return
        limits = self._admit(hello, sock.peer if isinstance(sock, TlsStream) else None)
        if isinstance(limits, Refusal):
            log.info("data port %s: refused %s: %s", self.address, peer_name(sock), limits.reason)
            self._refuse(sock, limits.reason, hello)
            return
        with suppress(OSError):  # if the dialler is gone, the link's next call says so
            tune(sock, self._silence_s)
            sock.send(encode_hello(answer_to(hello, limits, __version__)))
        self._deliver(hello, TcpLink(sock, hello.terms(limits)))

    def _measure(self, sock: Stream, hello: Hello) -> None:
        """Let a path be measured by whom TLS has let in; where there is none, by this machine alone."""
        try:
            tune(sock, self._silence_s)
            if not self._echo.take(sock, hello):
                self._refuse(sock, "other paths are being measured: try again in a moment", hello)
        except OSError:
            sock.close()  # who asked is gone

    def _turn_away(self, handshake: _Handshake, reason: str) -> None:
        """Refuse somebody who never got as far as asking for a link."""
        # Encrypted ports are open to a whole network: what knocks there in vain is worth a warning.
        level = logging.WARNING if self._tls else logging.INFO
        log.log(level, "data port %s: %s is no link: %s", self.address, peer_name(handshake.sock), reason)
        if self._tls and self._strangers.failed(handshake.host, time.monotonic()):
            log.warning("data port %s: %s is not listened to for a while", self.address, handshake.host)
        self._refuse(self._forget(handshake), reason)

    def _refuse(self, sock: Stream, reason: str, hello: Hello | None = None) -> None:
        epoch, stage = (hello.epoch.counter, hello.stage) if hello else (0, 0)
        raw = sock.raw if isinstance(sock, TlsStream) else sock
        with suppress(OSError, NotTrusted):  # who failed the TLS handshake has been told by TLS
            sock.send(plain(Kind.FAULT, epoch, 0, FAULT.pack(stage) + printable(reason)))
        with suppress(OSError):
            raw.shutdown(socket.SHUT_WR)
            raw.recv(4096)  # closing with bytes unread resets the connection, and the reason may be lost
        sock.close()

    def _forget(self, handshake: _Handshake) -> Stream:
        del self._unfinished[handshake.sock]
        self._selector.unregister(handshake.sock)
        return handshake.sock

    def _drop_late(self) -> None:
        now = time.monotonic()
        for handshake in list(self._unfinished.values()):
            if handshake.deadline > now:
                return
            self._turn_away(handshake, "no HELLO in time")


def _listen(address: Address) -> socket.socket:
    try:
        return listening_socket(address.host, address.port, BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address}: {error.strerror or error}; choose another port, or 0 for any free one"
        ) from error
