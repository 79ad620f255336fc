"""Clusters of two nodes in a folder, for tests and benchmarks of what is encrypted. Knows no process."""

from __future__ import annotations

from pathlib import Path

from hyperlane.cluster.trust import certificates
from hyperlane.cluster.trust.credentials import NodeCredentials
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.cluster.trust.worker_trust import WorkerTrust
from hyperlane.core import NodeId
from hyperlane.wire.peer import NodeRole, Peer, PeerName
from hyperlane.wire.tls import ClientTls, ServerTls


class TrustedPair:
    """A head and a worker of one cluster, with whatever else a test wants certificates for."""

    def __init__(self, folder: Path) -> None:
        """Make the authority and both certificates."""
        self.folder = folder
        self.head = HeadTrust(folder / "head")
        self.worker = WorkerTrust(folder / "worker", self.credentials(NodeRole.WORKER, folder / "worker"), ())

    def credentials(self, role: NodeRole, folder: Path, node: bytes = b"w" * 16) -> NodeCredentials:
        """A certificate that this cluster's authority signed and noted."""
        key = certificates.new_key()
        name = PeerName(self.head.authority.cluster, role, NodeId(node))
        certificate = self.head.authority.issue(name, key.public_key())
        self.head.members.record(certificate, folder.name, "127.0.0.1")
        return NodeCredentials.store(folder, self.head.authority.certificate, certificate.pem, key)

    @staticmethod
    def worker_tls(folder: Path) -> ServerTls:
        """How the worker of a pair that another process made listens."""
        credentials = NodeCredentials.load(folder / "worker")
        assert credentials is not None
        return credentials.server_tls(anybody)

    def server(self) -> ServerTls:
        """How the worker listens."""
        return self.worker.credentials.server_tls(self.worker.check)

    def client(self, node: NodeId | None = None) -> ClientTls:
        """How the head dials it."""
        return self.head.credentials.client_tls(NodeRole.WORKER, node, self.head.check)


def anybody(_peer: Peer) -> None:
    """A check that refuses nobody."""
