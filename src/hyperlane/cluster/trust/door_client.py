"""A worker at the head's door: joins with a token, and renews its certificate. Blocking; keeps nothing on disk."""

from __future__ import annotations

import hmac
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.trust import certificates
from hyperlane.cluster.trust.certificates import AuthorityCertificate, PrivateKey
from hyperlane.cluster.trust.credentials import NodeCredentials, bare_context
from hyperlane.cluster.trust.door_messages import packed, read_response
from hyperlane.cluster.trust.token import JoinToken
from hyperlane.core import Address, NodeId
from hyperlane.errors import JoinRefused, NotTrusted, ProtocolError, WorkerUnreachable
from hyperlane.wire.peer import NodeRole, PeerName, dns_name
from hyperlane.wire.tls import why

TIMEOUT_S = 5.0
"""For each address, connecting and each answer apart."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Admission:
    """What joining gives: to be stored together."""

    authority: AuthorityCertificate
    certificate: bytes
    key: PrivateKey


def join(token: JoinToken, node: NodeId, name: str, shown: NodeCredentials | None = None) -> Admission:
    """Exchange a token for a certificate at the first of its addresses that answers as the right head.

    The secret is sent only to who holds a certificate of the authority whose fingerprint the token has. `shown`: this
    node's certificate of that cluster, if it has one already.

    Raises:
        JoinRefused: the head refuses the token, or somebody else answers at its addresses.
        WorkerUnreachable: nothing answers at any of them.
        VersionMismatch: the head is of another version.

    """
    return _first(token.addresses, lambda address: _join(address, token, node, name, shown))


def renew(addresses: Sequence[Address], credentials: NodeCredentials) -> Admission:
    """The next certificate, for a new key, shown the present one.

    Raises:
        NotTrusted: the head refuses: this node was removed.
        WorkerUnreachable: nothing answers at any of the addresses.

    """

    def ask(address: Address) -> Admission:
        key = certificates.new_key()
        context = bare_context(ssl.PROTOCOL_TLS_CLIENT, credentials.authority)
        context.load_cert_chain(credentials.file)
        request = pb.DoorRequest(renew=pb.RenewRequest(request=certificates.new_request(key)))
        response = _ask(address, request, context, credentials.authority)
        return _checked(Admission(credentials.authority, response.certificate, key), credentials.name)

    return _first(addresses, ask)


def register(addresses: Sequence[Address], credentials: NodeCredentials, ask: pb.RegisterRequest) -> None:
    """Tell the head that this worker is there.

    Raises:
        JoinRefused, NotTrusted: the head refuses: this node was removed.
        WorkerUnreachable: nothing answers at any of the addresses.

    """

    def tell(address: Address) -> None:
        context = bare_context(ssl.PROTOCOL_TLS_CLIENT, credentials.authority)
        context.load_cert_chain(credentials.file)
        _ask(address, pb.DoorRequest(register=ask), context, credentials.authority)

    _first(addresses, tell)


def clock_offset_s(address: Address) -> float:
    """How far the clock of the head behind a door is ahead of ours; negative when it is behind. Trusts nobody.

    Raises:
        OSError, ProtocolError, VersionMismatch: no door answers there.

    """
    began_s = time.time()
    response = _exchange(address, pb.DoorRequest(authority=pb.AuthorityRequest()), _trusting_nobody(), None)
    return float(response.unix_ms) / 1000 - (began_s + time.time()) / 2


def _first(addresses: Sequence[Address], ask: Callable[[Address], T]) -> T:
    """Ask one after the other; only silence, and impostors, lead on to the next."""
    failures: list[str] = []
    kind: type[NotTrusted] | type[WorkerUnreachable] = WorkerUnreachable
    for address in addresses:
        try:
            return ask(address)
        except _Impostor as error:
            failures.append(f"{address}: {error}")
            kind = JoinRefused
        except ssl.SSLError as error:
            failures.append(f"{address}: {why(error)}")
            kind = JoinRefused
        except (OSError, ProtocolError) as error:
            failures.append(f"{address}: {why(error) if isinstance(error, OSError) else error}")
    raise kind(
        f"the cluster's head was not found: {'; '.join(failures)}. Check that `hyperlane serve` runs there and that no "
        "firewall is in between"
    )


class _Impostor(Exception):
    """Whoever answers is not the head that the token means."""


def _join(address: Address, token: JoinToken, node: NodeId, name: str, shown: NodeCredentials | None) -> Admission:
    authority = _authority_at(address, token.fingerprint)
    key = certificates.new_key()
    context = bare_context(ssl.PROTOCOL_TLS_CLIENT, authority)
    if shown is not None and shown.authority.fingerprint == authority.fingerprint:
        context.load_cert_chain(shown.file)
    ask = pb.JoinRequest(
        token_id=token.token_id, secret=token.secret, node=node, name=name, request=certificates.new_request(key)
    )
    response = _ask(address, pb.DoorRequest(join=ask), context, authority)
    expected = PeerName(authority.cluster, NodeRole.WORKER, node)
    return _checked(Admission(authority, response.certificate, key), expected)


def _authority_at(address: Address, fingerprint: bytes) -> AuthorityCertificate:
    """What somebody there calls the authority's certificate, if it is the one that is meant."""
    response = _exchange(address, pb.DoorRequest(authority=pb.AuthorityRequest()), _trusting_nobody(), None)
    try:
        authority = certificates.read_authority(response.authority, der=True)
    except NotTrusted as error:
        raise _Impostor(str(error)) from error
    if not hmac.compare_digest(authority.fingerprint, fingerprint):
        raise _Impostor("what answers there is another cluster's head, or pretends to be this one's")
    return authority


def _trusting_nobody() -> ssl.SSLContext:
    """Nothing is trusted on such a connection and nothing is told: what comes is compared with the token."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _ask(
    address: Address, request: pb.DoorRequest, context: ssl.SSLContext, authority: AuthorityCertificate
) -> pb.DoorResponse:
    """One question to a head that is verified to be the authority's."""
    response = _exchange(address, request, context, dns_name(authority.cluster, NodeRole.HEAD))
    if response.WhichOneof("answer") == "refusal":
        raise JoinRefused(f"the head at {address} refuses: {response.refusal}")
    return response


def _exchange(
    address: Address, request: pb.DoorRequest, context: ssl.SSLContext, server_name: str | None
) -> pb.DoorResponse:
    deadline = time.monotonic() + TIMEOUT_S
    with socket.create_connection((address.host, address.port), TIMEOUT_S) as sock:
        sock.settimeout(max(0.1, deadline - time.monotonic()))
        with context.wrap_socket(sock, server_hostname=server_name) as channel:
            channel.sendall(packed(request))
            return read_response(channel, time.monotonic() + TIMEOUT_S)


def _checked(admission: Admission, name: PeerName) -> Admission:
    """Hold what came against what was asked for."""
    try:
        found = certificates.read_certificate(admission.certificate).peer.name
    except NotTrusted as error:
        raise ProtocolError(f"the head answered nonsense: {error}") from error
    if found != name:
        raise ProtocolError(f"the head made a certificate for {found} instead of {name}")
    return admission
