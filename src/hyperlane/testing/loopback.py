"""Harnesses for `testing.links` and `testing.rings`: over TCP on loopback, plain and encrypted, and over memory."""

from __future__ import annotations

import functools
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hyperlane.testing.links import HIDDEN, TOKENS, Background, LinkHarness
from hyperlane.testing.rings import RingHarness
from hyperlane.testing.trust import TrustedPair
from hyperlane.wire.memory import MemoryLink, Pipe, memory_ring
from hyperlane.wire.ring import TcpRing
from hyperlane.wire.sockets import tune
from hyperlane.wire.tcp import TcpLink
from hyperlane.wire.tls import ClientTls, ServerTls, Stream, TlsStream


def tcp_sockets(buffer_bytes: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets on loopback; `buffer_bytes` fixes the kernel's buffers instead of its autotuning."""
    with socket.socket() as listener:
        if buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        here = socket.socket()
        if buffer_bytes is not None:
            here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        here.connect(listener.getsockname())
        there, _ = listener.accept()
    for sock in (here, there):
        tune(sock)
        if buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    return here, there


@functools.cache
def _tls() -> tuple[ClientTls, ServerTls]:
    """One cluster for all harnesses of a process; its files are not needed once the contexts are there."""
    with tempfile.TemporaryDirectory() as folder:
        pair = TrustedPair(Path(folder))
        return pair.client(), pair.server()


def tls_streams(buffer_bytes: int | None = None) -> tuple[TlsStream, TlsStream]:
    """As `tcp_sockets`, with the handshake done."""
    here, there = tcp_sockets(buffer_bytes)
    client, server = _tls()
    streams = TlsStream(here, client), TlsStream(there, server)
    answering = Background(streams[1].handshake)
    streams[0].handshake()
    answering.outcome()
    return streams


@contextmanager
def tcp_link() -> Iterator[LinkHarness]:
    """A `TcpLink` over loopback."""
    with _link(*tcp_sockets()) as harness:
        yield harness


@contextmanager
def tls_link() -> Iterator[LinkHarness]:
    """A `TcpLink` over encrypted loopback; `cut` ends the connection beneath the encryption."""
    with _link(*tls_streams()) as harness:
        yield harness


@contextmanager
def _link(here: Stream, there: Stream) -> Iterator[LinkHarness]:
    links = TcpLink(here, HIDDEN), TcpLink(there, HIDDEN)

    def cut() -> None:
        here.shutdown(socket.SHUT_WR)

    try:
        yield LinkHarness(*links, here.sendall, cut)
    finally:
        for link in links:
            link.close()


@contextmanager
def memory_link() -> Iterator[LinkHarness]:
    """A `MemoryLink`."""
    there, back = Pipe(), Pipe()
    links = MemoryLink(there, back, HIDDEN), MemoryLink(back, there, HIDDEN)
    try:
        yield LinkHarness(*links, lambda data: there.write([data]), there.end)
    finally:
        for link in links:
            link.close()


@contextmanager
def tcp_ring(stages: int, buffer_bytes: int = 4096) -> Iterator[RingHarness]:
    """A `TcpRing` and its stages' `TcpLink`s over loopback with the smallest of kernel buffers."""
    with _ring([tcp_sockets(buffer_bytes) for _ in range(stages + 1)]) as harness:
        yield harness


@contextmanager
def tls_ring(stages: int, buffer_bytes: int = 4096) -> Iterator[RingHarness]:
    """As `tcp_ring`, encrypted."""
    with _ring([tls_streams(buffer_bytes) for _ in range(stages + 1)]) as harness:
        yield harness


@contextmanager
def _ring(pairs: Sequence[tuple[Stream, Stream]]) -> Iterator[RingHarness]:
    stages = len(pairs) - 1
    terms = [TOKENS, *[HIDDEN] * stages]
    links = [
        (TcpLink(pairs[index][1], terms[index]), TcpLink(pairs[index + 1][0], terms[index + 1]))
        for index in range(stages)
    ]
    ring = TcpRing((pairs[0][0], TOKENS), (pairs[-1][1], HIDDEN))
    try:
        yield RingHarness(ring, links)
    finally:
        ring.close()
        for link in (one for pair in links for one in pair):
            with suppress(OSError):
                link.close()


@contextmanager
def memory_ring_harness(stages: int) -> Iterator[RingHarness]:
    """A `MemoryRing` and its stages' `MemoryLink`s."""
    ring, links = memory_ring([TOKENS, *[HIDDEN] * stages])
    try:
        yield RingHarness(ring, links)
    finally:
        ring.close()
        for link in (one for pair in links for one in pair):
            link.close()
