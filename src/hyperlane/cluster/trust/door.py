"""The head's door: a port where machines show a token and get a certificate, and members get their next one.

The only port of a head that strangers reach. What one costs is bounded: so many at a time, so long, so many bytes, and
hosts that fail again and again are not listened to for a while. Decides nothing: `HeadTrust` does.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress

from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.trust.credentials import bare_context
from hyperlane.cluster.trust.door_messages import MAX_BYTES, packed, read_request
from hyperlane.cluster.trust.head_trust import HeadTrust, Newcomer, printable_name
from hyperlane.core import Address, NodeId
from hyperlane.errors import ConfigError, HyperlaneError, NotTrusted, ProtocolError
from hyperlane.wire.peer import Peer, peer_of
from hyperlane.wire.strangers import Strangers
from hyperlane.wire.tls import why

log = logging.getLogger(__name__)

HANDSHAKE_WITHIN_S = 5.0
EXCHANGE_WITHIN_S = 10.0
MAX_AT_ONCE = 32
MAX_PER_HOST = 8
FAILURES = 10
FORGIVEN_PER_S = 0.1
BACKLOG = 128

OnJoined = Callable[[str, Address], None]
"""Told a newcomer's name and where it came from; from the event loop's thread."""


class JoinDoor:
    """Listens from `start` to `stop`, in one event loop."""

    def __init__(self, trust: HeadTrust, on_joined: OnJoined | None = None) -> None:
        self._trust = trust
        self._on_joined = on_joined
        self._strangers = Strangers(FAILURES, FORGIVEN_PER_S)
        self._guests: dict[asyncio.Task[None], str] = {}
        self._sock: socket.socket | None = None
        self._listening: asyncio.Task[None] | None = None

    async def start(self, address: Address) -> Address:
        """Listen; returns the address with the port that was chosen.

        Raises:
            ConfigError: the port is in use, or the address is not this machine's.

        """
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            self._sock = socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {address} for machines that join: {error.strerror or error}"
            ) from error
        self._sock.setblocking(False)
        self._listening = asyncio.create_task(self._listen(self._sock))
        return Address(address.host, self._sock.getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and end what is going on. Idempotent."""
        tasks = [task for task in (self._listening, *self._guests) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._sock is not None:
            self._sock.close()

    # --- one connection --------------------------------------------------------------------------------------

    async def _listen(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, (host, port, *_) = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("the door could not let somebody in: %s", error)
                await asyncio.sleep(0.05)  # out of file descriptors: trying again at once would spin
                continue
            if self._is_crowded(host) or self._strangers.barred(host, time.monotonic()):
                sock.close()
                continue
            task = asyncio.create_task(self._serve(sock, Address(host, port)))
            self._guests[task] = host
            task.add_done_callback(self._guests.pop)

    def _is_crowded(self, host: str) -> bool:
        here = list(self._guests.values())
        return len(here) >= MAX_AT_ONCE or here.count(host) >= MAX_PER_HOST

    async def _serve(self, sock: socket.socket, guest: Address) -> None:
        """The supervisor of one connection: whatever a stranger does ends here, with a line in the log."""
        try:
            async with asyncio.timeout(EXCHANGE_WITHIN_S):
                await self._exchange(sock, guest)
        except (HyperlaneError, OSError, EOFError) as error:
            reason = why(error) if isinstance(error, OSError) else str(error)
            log.warning("the door refused %s: %s", guest, reason or "it was too slow")
            if self._strangers.failed(guest.host, time.monotonic()):
                log.warning("the door does not listen to %s for a while", guest.host)
        finally:
            sock.close()

    async def _exchange(self, sock: socket.socket, guest: Address) -> None:
        reader = asyncio.StreamReader(limit=MAX_BYTES)
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader),
            sock,
            ssl=self._context(),
            ssl_handshake_timeout=HANDSHAKE_WITHIN_S,
            ssl_shutdown_timeout=1.0,
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await self._answer(reader, writer, guest)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, guest: Address) -> None:
        shown = writer.get_extra_info("ssl_object").getpeercert()
        refusal: HyperlaneError | None = None
        try:
            request = await read_request(reader)
            response = await asyncio.to_thread(self._decide, request, peer_of(shown) if shown else None, guest)
        except HyperlaneError as error:
            refusal, response = error, pb.DoorResponse(refusal=str(error))
        writer.write(packed(response))
        await writer.drain()
        if refusal is not None:
            raise refusal
        if request.WhichOneof("ask") == "join":
            name = printable_name(request.join.name)
            log.info("%s joined from %s", name, guest)
            if self._on_joined is not None:
                self._on_joined(name, guest)

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
            case _:
                raise ProtocolError("nothing was asked")

    def _context(self) -> ssl.SSLContext:
        """Made anew for each connection: the head's certificate may have been renewed."""
        credentials = self._trust.credentials
        context = bare_context(ssl.PROTOCOL_TLS_SERVER, credentials.authority)
        context.load_cert_chain(credentials.file)
        context.verify_mode = ssl.CERT_OPTIONAL  # a newcomer has none; who shows one must show a valid one
        context.num_tickets = 0
        return context
