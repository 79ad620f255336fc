"""Opening a link: connect, say HELLO, read the answer. What the other side does is in `listener`."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress

from hyperlane.core import Address
from hyperlane.errors import HyperlaneError, LinkBroken, WorkerUnreachable
from hyperlane.wire.codec import FAULT, HEADER, MAX_CAUSE_BYTES, read_fault, read_header
from hyperlane.wire.frame import Hello
from hyperlane.wire.hello import check_answer, check_hello_header, encode_hello, read_hello
from hyperlane.wire.kind import Kind, Role
from hyperlane.wire.limits import Terms
from hyperlane.wire.sockets import SILENCE_S, connected_here, tune
from hyperlane.wire.tcp import TcpLink
from hyperlane.wire.tls import ClientTls, Stream, TlsStream, distrust


def connect(
    address: Address, hello: Hello, timeout_s: float, silence_s: float = SILENCE_S, *, tls: ClientTls | None = None
) -> TcpLink:
    """Open a link to a stage's data port, encrypted if `tls` is given.

    Raises:
        WorkerUnreachable: nothing answers at that address in time.
        VersionMismatch: something does, in another version of the protocol.
        LinkBroken: the worker refused (the message has its reason), ended the connection, or was silent.
        ProtocolError: the answer is none.
        NotTrusted: one of the two sides does not trust the other's certificate.

    """
    return TcpLink(*dial(address, hello, timeout_s, silence_s, tls=tls))


def dial(
    address: Address, hello: Hello, timeout_s: float, silence_s: float = SILENCE_S, *, tls: ClientTls | None = None
) -> tuple[Stream, Terms]:
    """As `connect`, but hands over the bare stream and what was agreed."""
    deadline = time.monotonic() + timeout_s
    try:
        # A probe fills both directions at once, which a local socket has too little room for.
        here = connected_here(address) if tls is None and hello.role is not Role.PROBE else None
        sock = here or socket.create_connection((address.host, address.port), timeout_s)
    except OSError as error:
        raise WorkerUnreachable(f"nothing answers at {address}: {error.strerror or error}") from error
    stream: Stream = sock
    try:
        tune(sock, silence_s)
        if tls is not None:
            stream = TlsStream(sock, tls)
            stream.handshake(deadline)
        stream.sendall(encode_hello(hello))
        answer = _read_answer(stream, address, deadline)
        check_answer(hello, answer)
        stream.settimeout(None)
    except ssl.SSLError as error:
        sock.close()
        raise distrust(address, error) from error
    except OSError as error:
        sock.close()
        raise LinkBroken(f"{address} did not answer HELLO: {error.strerror or error}") from error
    except HyperlaneError:
        with suppress(OSError):
            sock.close()
        raise
    return stream, hello.terms(answer.limits)


def _read_answer(sock: Stream, address: Address, deadline: float) -> Hello:
    header = read_header(_exactly(sock, HEADER.size, deadline))
    if header.kind == Kind.FAULT and FAULT.size <= header.rows_bytes <= FAULT.size + MAX_CAUSE_BYTES:
        fault = read_fault(header, memoryview(_exactly(sock, header.rows_bytes, deadline)))
        raise LinkBroken(f"{address} refused the link: {fault.cause}")
    check_hello_header(header)
    return read_hello(header, _exactly(sock, header.rows_bytes, deadline))


def _exactly(sock: Stream, count: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        sock.settimeout(left)
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionResetError("the connection was closed")
        data += piece
    return bytes(data)
