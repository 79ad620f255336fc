"""A cluster's certificate authority on the head's disk. Issues; keeps no list of what it issued."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from filelock import FileLock

from hyperlane.cluster.trust import certificates
from hyperlane.cluster.trust.certificates import AuthorityCertificate, Certificate
from hyperlane.cluster.trust.files import private_folder, read_private, write_private
from hyperlane.core import ClusterId
from hyperlane.errors import NotTrusted
from hyperlane.wire.peer import ID_BYTES, PeerName

FILE = "authority.pem"
LOCK_TIMEOUT_S = 10.0
_END_OF_KEY = b"-----END PRIVATE KEY-----\n"


class Authority:
    """The key that a cluster's trust hangs on, and its certificate."""

    def __init__(self, folder: Path, *, make: bool = True) -> None:
        """Read it, or make one. `is_new` says which.

        Raises:
            NotTrusted: there is none and `make` is False; the file is damaged, or others may read it.
            OSError: the folder cannot be written.

        """
        path = private_folder(folder) / FILE
        with FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT_S):
            data = read_private(path)
            self.is_new = data is None
            if data is None:
                if not make:
                    raise NotTrusted(f"this machine has no cluster yet ({path}): `hyperlane serve MODEL` makes one")
                data = _made()
                write_private(path, data)
        key, _, certificate = data.partition(_END_OF_KEY)
        try:
            self._key = certificates.key_from_pem(key + _END_OF_KEY)
            self.certificate: AuthorityCertificate = certificates.read_authority(certificate)
        except NotTrusted as error:
            raise NotTrusted(f"{path} is damaged: {error}") from error

    @property
    def cluster(self) -> ClusterId:
        """Which cluster this is."""
        return self.certificate.cluster

    def issue(self, name: PeerName, public: ec.EllipticCurvePublicKey) -> Certificate:
        """A certificate for a node of this cluster, valid from now."""
        if name.cluster != self.cluster:
            raise NotTrusted(f"{name} is of another cluster than this authority")
        pem = certificates.issue(self.certificate.pem, self._key, name, public, datetime.now(UTC))
        return certificates.read_certificate(pem)


def _made() -> bytes:
    key = certificates.new_key()
    certificate = certificates.new_authority(ClusterId(secrets.token_bytes(ID_BYTES)), key, datetime.now(UTC))
    return certificates.key_to_pem(key) + certificate
