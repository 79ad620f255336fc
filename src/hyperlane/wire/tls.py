"""TLS 1.3 for links: `TlsStream` is a connected socket whose bytes are encrypted. Knows no frame and no file.

OpenSSL works on memory here, and the socket is ours: so one thread may send while another receives (an `SSLSocket`
allows that in recent Pythons only), and a small frame costs one system call in each direction. `benchmarks/tls.py`
has the price.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from hyperlane.errors import NotTrusted
from hyperlane.wire.codec import size_of
from hyperlane.wire.kind import Buffer
from hyperlane.wire.peer import Peer, peer_of

RECORD_BYTES = 1 << 14
"""The most plain bytes that one TLS record holds."""

GROUP_BYTES = 1 << 17
"""How many plain bytes are encrypted before the socket gets them; bounds the memory of a send."""

RECEIVE_BYTES = 1 << 17
HANDSHAKE_PIECE_BYTES = 1 << 12
MAX_HANDSHAKE_BYTES = 1 << 15
"""A stranger's handshake may send so much in all; ours are below 4 KiB."""

CheckPeer = Callable[[Peer], None]
"""Raises NotTrusted when a peer of a valid certificate may not be here: revoked, or of another role."""


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How a listener speaks TLS. The context demands certificates of one authority."""

    context: ssl.SSLContext
    check: CheckPeer


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How a dialler does. `server_name`: what the certificate there must name (see `peer.dns_name`)."""

    context: ssl.SSLContext
    check: CheckPeer
    server_name: str


class TlsStream:
    """As much of a socket as links use, over a connected socket that it takes over; blocking or not, as that one is.

    The handshake is done by the first call that needs it. One thread sends, one receives. The end of the stream is
    whatever ends the connection: links say BYE inside, so nothing can be cut short unnoticed.
    """

    def __init__(self, sock: socket.socket, tls: ServerTls | ClientTls) -> None:
        self._sock = sock
        self._check = tls.check
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = tls.server_name if isinstance(tls, ClientTls) else None
        self._tls = tls.context.wrap_bio(self._incoming, self._outgoing, name is None, name)
        self._guard = threading.Lock()
        self._peer: Peer | None = None
        self._refused: NotTrusted | None = None
        self._handshake_bytes = 0
        self._arrived = memoryview(b"")
        self._unsent = memoryview(b"")

    # --- the handshake ---------------------------------------------------------------------------------------

    def handshake(self, deadline_s: float | None = None) -> Peer:
        """Do it, or go on with it; idempotent once it is done. `deadline_s`: monotonic, for a socket that blocks.

        Raises:
            NotTrusted: the peer's certificate is valid, but not welcome; the stream can still send why.
            ssl.SSLError: the peer speaks no TLS, or shows no certificate of the authority.
            BlockingIOError: the socket does not block, and more must come first.
            TimeoutError: the deadline has passed.

        """
        if self._refused is not None:
            raise self._refused
        while self._peer is None:
            try:
                with self._guard:
                    self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._transmit()
                self._take_handshake_bytes(deadline_s)
                continue
            except ssl.SSLError:
                with suppress(OSError):  # the alert says why; nobody must hear it
                    self._transmit()
                raise
            self._transmit()
            self._arrived = memoryview(bytearray(RECEIVE_BYTES))
            self._peer = peer_of(self._tls.getpeercert())
            try:
                self._check(self._peer)
            except NotTrusted as error:
                self._refused = error
                raise
        return self._peer

    @property
    def peer(self) -> Peer | None:
        """Who is at the other end; None before the handshake."""
        return self._peer

    def _take_handshake_bytes(self, deadline_s: float | None) -> None:
        if deadline_s is not None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("the TLS handshake timed out")
            self._sock.settimeout(left_s)
        data = self._sock.recv(HANDSHAKE_PIECE_BYTES)
        self._handshake_bytes += len(data)
        if not data:
            raise ConnectionResetError("the connection was ended in the middle of the TLS handshake")
        if self._handshake_bytes > MAX_HANDSHAKE_BYTES:
            raise ssl.SSLError("the TLS handshake is too long")
        self._incoming.write(data)

    # --- receiving -------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether received bytes may be had without the socket becoming readable."""
        return bool(self._incoming.pending or self._tls.pending())

    def recv_into(self, buffer: memoryview) -> int:
        """As `socket.recv_into`: at most one record's bytes."""
        if self._peer is None or self._refused is not None:
            self.handshake()
        while True:
            if self.pending:
                try:
                    with self._guard:
                        return int(self._tls.read(len(buffer), buffer))
                except ssl.SSLWantReadError:
                    pass  # that was a part of a record
                except ssl.SSLZeroReturnError:
                    return 0
            count = self._sock.recv_into(self._arrived)
            if not count:
                return 0
            self._incoming.write(self._arrived[:count])

    def recv(self, count: int) -> bytes:
        """As `socket.recv`."""
        data = bytearray(count)
        return bytes(data[: self.recv_into(memoryview(data))])

    # --- sending ---------------------------------------------------------------------------------------------

    @property
    def unsent(self) -> bool:
        """Whether bytes that were taken have not reached the kernel: `flush` when the socket is writable."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Give the kernel what it has not taken yet.

        Raises:
            BlockingIOError: the socket does not block, and the kernel takes no more.

        """
        while self._unsent:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]

    def sendmsg(self, buffers: Sequence[Buffer]) -> int:
        """As `socket.sendmsg`: everything if the socket blocks; else what could be taken, with `unsent` behind it."""
        if self._peer is None:
            self.handshake()
        if self._unsent:
            self.flush()
        size = sum(map(size_of, buffers))
        if size <= RECORD_BYTES:
            self._send_together([b"".join(buffers) if len(buffers) > 1 else buffers[0]])
            return size
        taken = 0
        for group in _groups(buffers):
            taken += sum(map(size_of, group))
            if not self._send_together(group):
                break
        return taken

    def _send_together(self, pieces: Sequence[Buffer]) -> bool:
        """Encrypt, and give the kernel what it takes; whether that was all."""
        with self._guard:
            for piece in pieces:
                self._tls.write(piece)
            records = self._outgoing.read()
        try:
            sent = self._sock.send(records)
        except BlockingIOError:
            sent = 0
        if sent == len(records):
            return True
        self._unsent = memoryview(records)[sent:]
        try:
            self.flush()
        except BlockingIOError:
            return False
        return True

    def send(self, data: Buffer) -> int:
        """As `socket.send`."""
        return self.sendmsg([data])

    def sendall(self, data: Buffer) -> None:
        """As `socket.sendall`, on a socket that blocks."""
        self.sendmsg([data])

    def _transmit(self) -> None:
        """Give the kernel a handshake's few bytes: there is always room for them."""
        records = self._outgoing.read()
        if records:
            self._sock.sendall(records)

    # --- the socket beneath ----------------------------------------------------------------------------------

    @property
    def raw(self) -> socket.socket:
        """The socket itself, to end a connection whose handshake failed."""
        return self._sock

    def fileno(self) -> int:
        """Of the socket, for selectors."""
        return self._sock.fileno()

    def getpeername(self) -> object:
        """As `socket.getpeername`."""
        return self._sock.getpeername()

    def setblocking(self, flag: bool) -> None:
        """As `socket.setblocking`."""
        self._sock.setblocking(flag)

    def settimeout(self, seconds: float | None) -> None:
        """As `socket.settimeout`."""
        self._sock.settimeout(seconds)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """As `socket.setsockopt`."""
        self._sock.setsockopt(level, option, value)

    def shutdown(self, how: int) -> None:
        """As `socket.shutdown`."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """As `socket.close`."""
        self._sock.close()


Stream = socket.socket | TlsStream
"""What a link's bytes go through."""


def why(error: OSError) -> str:
    """The reason of a failed handshake or connection, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not one of this cluster: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        return _REASONS.get(reason, f"TLS: {reason.lower().replace('_', ' ')}")
    return error.strerror or str(error)


_REASONS = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "HTTP_REQUEST": "it does not speak TLS",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not one of this cluster",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know this cluster's certificates",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it asks for a certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it does not speak TLS 1.3",
}


def distrust(who: object, error: ssl.SSLError) -> NotTrusted:
    """The error for a dialler whose handshake failed."""
    return NotTrusted(f"{who} cannot be trusted, or does not trust us: {why(error)}")


def _groups(buffers: Sequence[Buffer]) -> Iterator[list[Buffer]]:
    """A large frame in pieces that are encrypted together; nothing is copied."""
    group: list[Buffer] = []
    room = GROUP_BYTES
    for buffer in buffers:
        view = memoryview(buffer).cast("B") if size_of(buffer) else memoryview(b"")
        while view:
            piece, view = view[:room], view[room:]
            group.append(piece)
            room -= len(piece)
            if not room:
                yield group
                group, room = [], GROUP_BYTES
    if group:
        yield group
