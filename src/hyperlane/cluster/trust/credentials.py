"""What a node shows and demands: its key, its certificate and its cluster's authority, in one private file.

Makes TLS contexts of them. Knows no server and no protocol.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from hyperlane.cluster.trust import certificates
from hyperlane.cluster.trust.certificates import AuthorityCertificate, Certificate, PrivateKey
from hyperlane.cluster.trust.files import private_folder, read_private, write_private
from hyperlane.core import ClusterId, NodeId
from hyperlane.errors import NotTrusted
from hyperlane.wire.peer import NodeRole, PeerName, dns_name
from hyperlane.wire.tls import CheckPeer, ClientTls, ServerTls

FILE = "node.pem"
_END = b"-----END CERTIFICATE-----\n"
_END_OF_KEY = b"-----END PRIVATE KEY-----\n"


@dataclass(frozen=True, slots=True)
class NodeCredentials:
    """One node's, as its file has them: key, certificate, authority. `file`: where, for OpenSSL to read."""

    file: Path
    authority: AuthorityCertificate
    certificate: Certificate
    key_pem: bytes = field(repr=False)

    @property
    def name(self) -> PeerName:
        """Who the certificate says this is."""
        return self.certificate.peer.name

    @property
    def cluster(self) -> ClusterId:
        """Whose certificate it is."""
        return self.name.cluster

    @classmethod
    def store(cls, folder: Path, authority: AuthorityCertificate, certificate: bytes, key: PrivateKey) -> Self:
        """Keep new ones in place of the old; after a crash one or the other is there, whole.

        Raises:
            NotTrusted: the three do not belong together.
            OSError: the folder cannot be written.

        """
        key_pem = certificates.key_to_pem(key)
        made = cls._checked(private_folder(folder) / FILE, authority, certificate, key_pem)
        write_private(made.file, key_pem + certificate + authority.pem)
        return made

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Those of a folder, None if there are none.

        Raises:
            NotTrusted: the file is damaged, or others may read it.

        """
        data = read_private(folder / FILE)
        if data is None:
            return None
        key, _, rest = data.partition(_END_OF_KEY)
        certificate, end, authority = rest.partition(_END)
        try:
            return cls._checked(
                folder / FILE, certificates.read_authority(authority), certificate + end, key + _END_OF_KEY
            )
        except NotTrusted as error:
            raise NotTrusted(f"{folder / FILE} is damaged ({error}): delete it and join again") from error

    @classmethod
    def _checked(cls, file: Path, authority: AuthorityCertificate, certificate: bytes, key_pem: bytes) -> Self:
        read = certificates.read_certificate(certificate)
        if read.peer.name.cluster != authority.cluster or not authority.signed(certificate):
            raise NotTrusted("the certificate was not signed by the authority beside it")
        if not certificates.same_key(certificate, certificates.key_from_pem(key_pem)):
            raise NotTrusted("the certificate is for another key")
        return cls(file, authority, read, key_pem)

    # --- TLS -------------------------------------------------------------------------------------------------

    def server_tls(self, check: CheckPeer) -> ServerTls:
        """For a listener: whoever connects must show a certificate of this cluster, and pass `check`."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # nobody resumes; and a sender that never reads would leave them in the socket
        return ServerTls(context, check)

    def client_tls(self, role: NodeRole, node: NodeId | None, check: CheckPeer) -> ClientTls:
        """For dialling a node of this cluster with a role, exactly this one if it is named."""
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        return ClientTls(context, check, dns_name(self.cluster, role, node))

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = bare_context(protocol, self.authority)
        try:
            context.load_cert_chain(self.file)
        except (OSError, ssl.SSLError) as error:
            raise NotTrusted(f"{self.file} cannot be used: {error}") from error
        return context


def bare_context(protocol: int, authority: AuthorityCertificate) -> ssl.SSLContext:
    """TLS 1.3 that trusts one authority alone and demands a certificate of it; shows none."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority.pem.decode("ascii"))
    context.verify_mode = ssl.CERT_REQUIRED
    return context
