"""Mutual TLS on gRPC: credentials for both sides, and a gate that lets each role call what is its own.

gRPC has its own TLS library: what Python's contexts say does not hold there. Its versions are `old_tls`'s matter.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from hyperlane.cluster import rpc
from hyperlane.cluster.trust.certificates import read_certificate
from hyperlane.cluster.trust.credentials import NodeCredentials
from hyperlane.cluster.trust.trust import Trust
from hyperlane.core import Address, NodeId
from hyperlane.errors import NotTrusted
from hyperlane.wire.peer import NodeRole, Peer, dns_name

log = logging.getLogger(__name__)

HANDSHAKE_WITHIN_MS = 5000
MAX_CONNECTIONS = 256
SERVER_OPTIONS = (
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_WITHIN_MS),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
)

HEAD_ALONE = frozenset({NodeRole.HEAD})
ALL_MEMBERS = frozenset(NodeRole)
Allowed = Mapping[str, frozenset[NodeRole]]
"""Which roles may call a method ('/package.Service/Method') or every method of a service ('/package.Service/')."""

Options = tuple[tuple[str, object], ...]

Behaviour = Callable[..., Any]

Context = Any
"""A grpc.aio.ServicerContext; grpc has no types."""


# --- credentials ---------------------------------------------------------------------------------------------


def server_credentials(trust: Trust) -> grpc.ServerCredentials:
    """For a port: callers must show a certificate of the cluster. A renewed certificate is shown from then on."""
    shown = [trust.credentials]

    def newest() -> grpc.ServerCertificateConfiguration | None:
        credentials = trust.credentials
        if credentials is shown[0]:
            return None
        shown[0] = credentials
        return _server_configuration(credentials)

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(shown[0]), newest, require_client_authentication=True
    )


def _server_configuration(credentials: NodeCredentials) -> grpc.ServerCertificateConfiguration:
    pair = (credentials.key_pem, credentials.certificate.pem)
    return grpc.ssl_server_certificate_configuration([pair], credentials.authority.pem)


def add_port(server: grpc.aio.Server, target: str, credentials: grpc.ServerCredentials | None) -> int:
    """Listen, encrypted if there are credentials; returns the port. Raises RuntimeError as gRPC does."""
    if credentials is None:
        return int(server.add_insecure_port(target))
    return int(server.add_secure_port(target, credentials))


def channel_credentials(credentials: NodeCredentials) -> grpc.ChannelCredentials:
    """For calling a node of the cluster."""
    return grpc.ssl_channel_credentials(credentials.authority.pem, credentials.key_pem, credentials.certificate.pem)


def channel_options(
    credentials: NodeCredentials, role: NodeRole, node: NodeId | None
) -> tuple[tuple[str, object], ...]:
    """What a channel's peer must be: any node of the cluster with a role, or exactly one."""
    return (*rpc.CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", dns_name(credentials.cluster, role, node)))


def open_channel(address: Address, trust: Trust | None, role: NodeRole, node: NodeId | None = None) -> grpc.Channel:
    """A channel for threads, to one node of the cluster or any with a role; a plain one if there is no `trust`."""
    if trust is None:
        return grpc.insecure_channel(rpc.target(address), options=rpc.CHANNEL_OPTIONS)
    credentials = trust.credentials
    options = channel_options(credentials, role, node)
    return grpc.secure_channel(rpc.target(address), channel_credentials(credentials), options=options)


# --- who calls -----------------------------------------------------------------------------------------------


def caller(context: Context) -> Peer | None:
    """Whom the caller's certificate names; None on a plain connection, which comes from this machine.

    Raises:
        NotTrusted: it names no node.

    """
    shown = context.auth_context().get("x509_pem_cert")
    return _peer(shown[0]) if shown else None


@functools.lru_cache(maxsize=64)
def _peer(pem: bytes) -> Peer:
    return read_certificate(pem).peer


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Looks at the certificate behind every call: its role, and whether it was taken back since."""

    def __init__(self, check: Callable[[Peer], None], allowed: Allowed) -> None:
        """`allowed`: what is not in it may be called by nobody."""
        self._check = check
        self._allowed = allowed

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], call: grpc.HandlerCallDetails
    ) -> Any:  # noqa: ANN401 (gRPC's handler)
        """As grpc.aio.ServerInterceptor."""
        handler = await continuation(call)
        if handler is None:
            return None
        guard = functools.partial(_guarded, functools.partial(self._admit, call.method))
        guard_stream = functools.partial(_guarded_stream, functools.partial(self._admit, call.method))
        coding = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(guard(handler.unary_unary), *coding)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(guard_stream(handler.unary_stream), *coding)
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(guard(handler.stream_unary), *coding)
        return grpc.stream_stream_rpc_method_handler(guard_stream(handler.stream_stream), *coding)

    def _admit(self, method: str, context: Context) -> None:
        peer: Peer | None = None
        try:
            peer = caller(context)
            if peer is None:
                raise NotTrusted("no certificate was shown")
            self._check(peer)
            service = method.rpartition("/")[0] + "/"
            if peer.name.role not in self._allowed.get(method, self._allowed.get(service, frozenset())):
                raise NotTrusted(f"{peer} may not call {method}")
        except NotTrusted as error:
            log.warning("control port: refused %s (%s): %s", context.peer(), peer or "no node", error)
            raise


def _guarded(admit: Callable[[Context], None], behaviour: Behaviour) -> Behaviour:
    async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
        async with rpc.refusals(context):
            admit(context)
        return await behaviour(request, context)

    return call


def _guarded_stream(admit: Callable[[Context], None], behaviour: Behaviour) -> Behaviour:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
        async with rpc.refusals(context):
            admit(context)
        async with aclosing(behaviour(request, context)) as responses:  # ends it at once when the caller goes away
            async for response in responses:
                yield response

    return call
