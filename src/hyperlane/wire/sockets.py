"""TCP sockets set up for frames, and gather writes that every platform can do. Knows buffers, not what they mean."""

from __future__ import annotations

import functools
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence

from hyperlane.core import Address
from hyperlane.wire.kind import Buffer
from hyperlane.wire.tls import Stream

SILENCE_S = 60
"""After how many seconds without a sign of life from the peer's kernel a connection is given up.

Linux applies TCP_USER_TIMEOUT also to a peer that lives but takes nothing, so it must exceed the longest step of a
slow stage. A hung worker is found much earlier, by Health.
"""

KEEPALIVE_IDLE_S = 10
KEEPALIVE_INTERVAL_S = 5
JOIN_BELOW_BYTES = 1 << 16

_CREDENTIALS = struct.Struct("iII")
"""Of a local socket's peer: process, user, group."""

_HAS_SENDMSG = hasattr(socket.socket, "sendmsg")


def _most_buffers() -> int:
    try:
        return max(16, os.sysconf("SC_IOV_MAX"))
    except (AttributeError, ValueError, OSError):
        return 16


_MOST_BUFFERS = _most_buffers() if _HAS_SENDMSG else 0


def everywhere() -> str:
    """The host to listen on for every address of this machine, of both versions of IP where it has both."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 (that is the purpose)


def listening_socket(host: str, port: int, backlog: int) -> socket.socket:
    """A socket that listens; on '::' also for IPv4 where the system can.

    Raises:
        OSError: the port is in use, or the address is not this machine's.

    """
    if host == "::" and socket.has_dualstack_ipv6():
        return socket.create_server((host, port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    if host == "::":
        host = everywhere()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=backlog)


def listening_here(address: Address, backlog: int) -> socket.socket | None:
    """A second door to a port of the loopback, for processes of this machine; None where the system has none.

    A local socket has no TCP under it: less code to fetch into caches that are full of weights.
    """
    name = _name_here(address)
    if name is None:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(name)
        sock.listen(backlog)
    except OSError:  # somebody else has that name: there is the port
        sock.close()
        return None
    return sock


def connected_here(address: Address) -> socket.socket | None:
    """A connection to the second door of this port, if it has one that this user, or root, has opened."""
    name = _name_here(address)
    if name is None:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(name)
        # Nobody can listen on a port that is taken; names are anybody's.
        _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    except OSError:
        sock.close()
        return None
    if user not in {0, os.getuid()}:
        sock.close()
        return None
    return sock


def _name_here(address: Address) -> str | None:
    """Linux has names that are no files, and end with their socket."""
    if sys.platform != "linux" or address.host not in {"127.0.0.1", "::1"}:
        return None
    return f"\0hyperlane-data-{address.host}-{address.port}"


def plain_host(host: str) -> str:
    """A peer's host as people know it: IPv4 that came through a socket of both versions looks like IPv6."""
    return host.removeprefix("::ffff:") if "." in host else host


def tune(sock: Stream, silence_s: float = SILENCE_S) -> None:
    """No delay for small frames, and an end to connections whose peer has vanished. Buffer sizes stay the kernel's."""
    if isinstance(sock, socket.socket) and sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return  # no network is between the two
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPALIVE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", max(1, int(silence_s - KEEPALIVE_IDLE_S) // KEEPALIVE_INTERVAL_S)),
        ("TCP_USER_TIMEOUT", int(silence_s * 1000)),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def send_some(sock: Stream, buffers: Sequence[Buffer]) -> int:
    """One system call, or a few on an encrypted stream: how many bytes of the buffers, in order, were taken."""
    if _HAS_SENDMSG:
        return sock.sendmsg(buffers if len(buffers) <= _MOST_BUFFERS else buffers[:_MOST_BUFFERS])
    if len(buffers) == 1:
        return sock.send(buffers[0])
    small: list[Buffer] = []
    size = 0
    for buffer in buffers:
        size += memoryview(buffer).nbytes
        if small and size > JOIN_BELOW_BYTES:
            break
        small.append(buffer)
    return sock.send(b"".join(small) if len(small) > 1 else small[0])


def gather_of(sock: Stream) -> Callable[[Sequence[Buffer]], int]:
    """`send_some` of this stream, as directly as it goes. No frame has as many buffers as a call takes at most."""
    if _HAS_SENDMSG and isinstance(sock, socket.socket):
        return sock.sendmsg
    return functools.partial(send_some, sock)


def rest_after(buffers: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What is left of the buffers once the first `sent` bytes are gone. Nothing is copied."""
    for index, buffer in enumerate(buffers):
        view = memoryview(buffer)
        if sent < view.nbytes:
            return [view.cast("B")[sent:], *buffers[index + 1 :]]
        sent -= view.nbytes
    return []
