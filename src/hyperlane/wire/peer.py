"""Who is at the other end of an encrypted connection: names as certificates carry them. Pure; knows no socket."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperlane.core import ClusterId, NodeId
from hyperlane.errors import NotTrusted

ID_BYTES = 16
DOMAIN = "hyperlane.internal"
"""Of the names that certificates carry for TLS's own check of names; no resolver is ever asked for them."""

_URI = re.compile(r"hyperlane://([0-9a-f]{32})/(head|worker)/([0-9a-f]{32})")


class NodeRole(enum.StrEnum):
    """What a certificate allows: a head loads and unloads, a worker is loaded and computes."""

    HEAD = "head"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class PeerName:
    """The subject of a node's certificate."""

    cluster: ClusterId
    role: NodeRole
    node: NodeId

    def __str__(self) -> str:
        return f"{self.role} {self.node.hex()[:8]} of cluster {self.cluster.hex()[:8]}"

    @property
    def uri(self) -> str:
        """The name as a URI: what we read."""
        return f"hyperlane://{self.cluster.hex()}/{self.role}/{self.node.hex()}"

    @property
    def dns_names(self) -> tuple[str, str]:
        """The names that TLS itself checks: of any node with this role, and of this node."""
        return dns_name(self.cluster, self.role), dns_name(self.cluster, self.role, self.node)

    @classmethod
    def parse(cls, uri: str) -> PeerName:
        """Read a URI of a certificate.

        Raises:
            NotTrusted: it names no node.

        """
        match = _URI.fullmatch(uri)
        if match is None:
            raise NotTrusted(f"the certificate's name {uri!r} is not that of a Hyperlane node")
        return cls(ClusterId(bytes.fromhex(match[1])), NodeRole(match[2]), NodeId(bytes.fromhex(match[3])))


@dataclass(frozen=True, slots=True)
class Peer:
    """A certificate that was verified against the cluster's authority: its subject and its serial number."""

    name: PeerName
    serial: int

    def __str__(self) -> str:
        return str(self.name)


def dns_name(cluster: ClusterId, role: NodeRole, node: NodeId | None = None) -> str:
    """The name to ask TLS to check: any node of a cluster with a role, or exactly one."""
    return ".".join([*([node.hex()] if node else []), role.value, cluster.hex(), DOMAIN])


def peer_of(certificate: Mapping[str, Any] | None) -> Peer:
    """Read what `SSLSocket.getpeercert` says of a verified certificate.

    Raises:
        NotTrusted: there is none, or it is no node's.

    """
    if not certificate:
        raise NotTrusted("no certificate was shown")
    uris = [name for kind, name in certificate.get("subjectAltName", ()) if kind == "URI"]
    return Peer(only_name(uris), int(certificate["serialNumber"], 16))


def only_name(uris: list[str]) -> PeerName:
    """The node that a certificate's URIs name.

    Raises:
        NotTrusted: they name none, or several.

    """
    if len(uris) != 1:
        raise NotTrusted(f"a node's certificate has one name, not {len(uris)}")
    return PeerName.parse(uris[0])
