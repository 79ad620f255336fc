"""Who answers at a control port, before anything is asked there. Blocking; knows no gRPC call.

gRPC tells a failed handshake in words for itself, and its Python API does not show the server's certificate: so one
connection is made only to look.
"""

from __future__ import annotations

import socket
import ssl
import time

from hyperlane.cluster.trust.trust import Trust
from hyperlane.core import Address, NodeId
from hyperlane.errors import NotTrusted, WorkerUnreachable
from hyperlane.wire.peer import NodeRole, Peer
from hyperlane.wire.tls import ClientTls, TlsStream, distrust

_PLAIN = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}


class SpeaksNoTls(NotTrusted):
    """Something answers there, without encryption."""


def identify(address: Address, trust: Trust, role: NodeRole, timeout_s: float, node: NodeId | None = None) -> Peer:
    """The node at a control port: its certificate is valid and not taken back, and it takes ours.

    Raises:
        WorkerUnreachable: nothing answers in time.
        SpeaksNoTls: what answers does not encrypt.
        NotTrusted: it is not a node of this cluster with that role (and that id), was removed, or refuses us.

    """
    deadline_s = time.monotonic() + timeout_s
    tls = trust.credentials.client_tls(role, node, trust.check)
    tls.context.set_alpn_protocols(["h2"])
    try:
        sock = socket.create_connection((address.host, address.port), timeout_s)
    except OSError as error:
        raise _unreachable(address, role, error.strerror or str(error)) from error
    with sock:
        try:
            return _look(sock, address, tls, deadline_s)
        except TimeoutError as error:
            raise _unreachable(address, role, "it did not say who it is in time") from error
        except OSError as error:
            raise _unreachable(address, role, error.strerror or str(error)) from error


def _look(sock: socket.socket, address: Address, tls: ClientTls, deadline_s: float) -> Peer:
    stream = TlsStream(sock, tls)
    try:
        peer = stream.handshake(deadline_s)
        sock.settimeout(max(0.01, deadline_s - time.monotonic()))
        if not stream.recv(1):  # a gRPC server speaks first; TLS 1.3 says only now whether it takes our certificate
            raise NotTrusted(f"{peer} at {address} does not take our certificate")
    except ssl.SSLError as error:
        if error.reason in _PLAIN:
            raise SpeaksNoTls(
                f"what answers at {address} does not encrypt: on that machine, run `hyperlane worker --join TOKEN`"
            ) from error
        raise distrust(address, error) from error
    return peer


def _unreachable(address: Address, role: NodeRole, reason: str) -> WorkerUnreachable:
    return WorkerUnreachable(
        f"the {role} does not answer at {address}: {reason}; check that it runs, that the address and port are "
        "right, and that no firewall is in between"
    )
