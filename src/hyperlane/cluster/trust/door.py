"""The head's door: a port where machines show a token and get a certificate, and members get their next one.

The only port of a head that strangers reach. What one costs is bounded: so many at a time, so long, so many bytes, and
hosts that fail again and again are not listened to for a while. Decides nothing: `HeadTrust` does.
"""

from __future__ import annotations

import logging
import re
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.trust.credentials import bare_context
from hyperlane.cluster.trust.door_messages import packed, read_request
from hyperlane.cluster.trust.head_trust import HeadTrust, Newcomer, printable_name
from hyperlane.core import Address, NodeId
from hyperlane.errors import ConfigError, HyperlaneError, NotTrusted, ProtocolError
from hyperlane.wire.codec import printable
from hyperlane.wire.peer import NodeRole, Peer, peer_of
from hyperlane.wire.sockets import listening_socket, plain_host
from hyperlane.wire.strangers import Strangers
from hyperlane.wire.tls import why

log = logging.getLogger(__name__)

HANDSHAKE_WITHIN_S = 5.0
REQUEST_WITHIN_S = 5.0
MAX_AT_ONCE = 32
MAX_PER_HOST = 8
FAILURES = 10
FORGIVEN_PER_S = 0.1
BACKLOG = 128

_MACHINE = re.compile(r"[0-9a-f]{0,64}")

OnJoined = Callable[[str, Address], None]
"""Told a newcomer's name and where it came from; from a thread of the door's."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A worker that says where it is. `peer`: as its certificate names it; `machine`: see `core.WorkerFacts`."""

    peer: Peer
    address: Address
    machine: str
    name: str
    version: str
    protocol: int


OnRegistered = Callable[[Arrival], None]
"""Told of a worker that is there; from a thread of the door's."""


class JoinDoor:
    """Listens from construction until `close`; one thread lets in, one for each guest answers."""

    def __init__(self, trust: HeadTrust, address: Address, on_joined: OnJoined | None = None) -> None:
        """Listen.

        Raises:
            ConfigError: the port is in use, or the address is not this machine's.

        """
        self._trust = trust
        self._on_joined = on_joined
        self.on_registered: OnRegistered | None = None
        self._strangers = Strangers(FAILURES, FORGIVEN_PER_S)
        self._guests: dict[socket.socket, tuple[str, threading.Thread]] = {}
        self._guard = threading.Lock()
        self._sock = _listen(address)
        self.address = Address(address.host, self._sock.getsockname()[1])
        self._waker, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and end what is going on. Idempotent."""
        if not self._thread.is_alive():
            return
        self._waker.send(b"x")
        self._thread.join()
        with self._guard:
            guests = list(self._guests.items())
        for sock, (_, thread) in guests:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            thread.join()
        self._waker.close()

    # --- letting in ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while all(key.fileobj is self._sock for key, _ in selector.select()):
                self._accept()
        self._sock.close()
        self._woken.close()

    def _accept(self) -> None:
        try:
            sock, (host, port, *_) = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # who knocked has gone again
        except OSError as error:
            log.warning("the door could not let somebody in: %s", error)
            time.sleep(0.05)  # out of file descriptors: trying again at once would spin
            return
        host = plain_host(host)
        with self._guard:
            here = [one for one, _ in self._guests.values()]
            crowded = len(here) >= MAX_AT_ONCE or here.count(host) >= MAX_PER_HOST
            if crowded or self._strangers.barred(host, time.monotonic()):
                sock.close()
                return
            thread = threading.Thread(target=self._serve, args=(sock, Address(host, port)), name="guest", daemon=True)
            self._guests[sock] = (host, thread)
        thread.start()

    def _serve(self, sock: socket.socket, guest: Address) -> None:
        """The supervisor of one connection: whatever a stranger does ends here, with a line in the log."""
        try:
            self._exchange(sock, guest)
        except OSError as error:
            self._refused(guest, why(error))
        finally:
            with self._guard:
                del self._guests[sock]
            sock.close()

    def _refused(self, guest: Address, reason: str) -> None:
        # A stranger's words may be in it: they must not write lines of their own into a log or a terminal.
        log.warning("the door refused %s: %s", guest, printable(reason).decode())
        with self._guard:
            barred = self._strangers.failed(guest.host, time.monotonic())
        if barred:
            log.warning("the door does not listen to %s for a while", guest.host)

    # --- one connection --------------------------------------------------------------------------------------

    def _exchange(self, sock: socket.socket, guest: Address) -> None:
        sock.settimeout(HANDSHAKE_WITHIN_S)
        with self._context().wrap_socket(sock.dup(), server_side=True) as channel:
            try:
                response = self._answer(channel, guest)
            except HyperlaneError as error:
                self._refused(guest, str(error))
                response = pb.DoorResponse(refusal=str(error))
            response.unix_ms = int(time.time() * 1000)
            channel.sendall(packed(response))
            _say_goodbye(channel)

    def _answer(self, channel: ssl.SSLSocket, guest: Address) -> pb.DoorResponse:
        shown = channel.getpeercert()
        request = read_request(channel, time.monotonic() + REQUEST_WITHIN_S)
        response = self._decide(request, peer_of(shown) if shown else None, guest)
        if request.WhichOneof("ask") == "join":
            name = printable_name(request.join.name)
            log.info("%s joined from %s", name, guest)
            if self._on_joined is not None:
                self._on_joined(name, guest)
        return response

    def _decide(self, request: pb.DoorRequest, shown: Peer | None, guest: Address) -> pb.DoorResponse:
        match request.WhichOneof("ask"):
            case "authority":
                return pb.DoorResponse(authority=self._trust.authority.certificate.der)
            case "join":
                ask = request.join
                newcomer = Newcomer(ask.token_id, ask.secret, NodeId(ask.node), ask.name, ask.request, guest.host)
                return pb.DoorResponse(certificate=self._trust.admit(newcomer, shown))
            case "renew":
                if shown is None:
                    raise NotTrusted("who wants a new certificate must show the old one")
                return pb.DoorResponse(certificate=self._trust.renew(shown, request.renew.request, guest.host))
            case "register":
                if shown is None:
                    raise NotTrusted("who registers must show a certificate")
                self._register(shown, request, guest)
                return pb.DoorResponse(registered=True)
            case _:
                raise ProtocolError("nothing was asked")

    def _register(self, shown: Peer, request: pb.DoorRequest, guest: Address) -> None:
        self._trust.check(shown)
        ask = request.register
        if shown.name.role is not NodeRole.WORKER:
            raise NotTrusted(f"{shown} is no worker")
        if not 0 < ask.control_port < 1 << 16 or not _MACHINE.fullmatch(ask.machine):
            raise ProtocolError("what a worker registers makes no sense")
        if self.on_registered is not None:
            there, version = Address(guest.host, ask.control_port), request.version
            name = printable_name(ask.name)
            self.on_registered(Arrival(shown, there, ask.machine, name, version.hyperlane, version.protocol))

    def _context(self) -> ssl.SSLContext:
        """Made anew for each connection: the head's certificate may have been renewed."""
        credentials = self._trust.credentials
        context = bare_context(ssl.PROTOCOL_TLS_SERVER, credentials.authority)
        context.load_cert_chain(credentials.file)
        context.verify_mode = ssl.CERT_OPTIONAL  # a newcomer has none; who shows one must show a valid one
        context.num_tickets = 0
        return context


def _listen(address: Address) -> socket.socket:
    try:
        sock = listening_socket(address.host, address.port, BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address} for machines that join: {error.strerror or error}; choose another address "
            "with --join-listen"
        ) from error
    sock.setblocking(False)
    return sock


def _say_goodbye(channel: ssl.SSLSocket) -> None:
    """Closing with bytes unread would reset the connection, and the answer might be lost."""
    with suppress(OSError, ValueError):
        channel.settimeout(1.0)
        channel.unwrap().close()
