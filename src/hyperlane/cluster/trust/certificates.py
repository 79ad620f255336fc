"""X.509 for nodes: requests, certificates and what they say, on top of `cryptography`. Knows no file and no clock."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hyperlane.core import ClusterId
from hyperlane.errors import NotTrusted
from hyperlane.wire.peer import ID_BYTES, Peer, PeerName, only_name

CURVE = ec.SECP256R1()
AUTHORITY_DAYS = 3650
NODE_DAYS = 180
RENEW_WITHIN_DAYS = 60
"""A certificate that has fewer days left is renewed: a machine may be switched off for most of half a year."""

CLOCK_SKEW = timedelta(hours=1)
"""How far behind the authority's clock a node's may be."""

MAX_REQUEST_BYTES = 4096
_AUTHORITY_PREFIX = "Hyperlane cluster "

PrivateKey = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Certificate:
    """A node's certificate, read but not verified. `pem`: as it is stored and shown; `until`: end of its validity."""

    pem: bytes
    peer: Peer
    since: datetime
    until: datetime

    def needs_renewal(self, now: datetime) -> bool:
        """Whether it is time to ask for the next one."""
        return now > self.until - timedelta(days=RENEW_WITHIN_DAYS)


@dataclass(frozen=True, slots=True)
class AuthorityCertificate:
    """The root of a cluster's trust, as everybody may see it."""

    pem: bytes
    der: bytes
    cluster: ClusterId

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the certificate: what a token carries."""
        return hashlib.sha256(self.der).digest()

    def signed(self, certificate: bytes) -> bool:
        """Whether a certificate (PEM) is one of this authority's; its dates are not looked at."""
        try:
            x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(
                x509.load_der_x509_certificate(self.der)
            )
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


# --- keys and requests ---------------------------------------------------------------------------------------


def new_key() -> PrivateKey:
    """A private key that has been nowhere yet."""
    return ec.generate_private_key(CURVE)


def key_to_pem(key: PrivateKey) -> bytes:
    """For a private file."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_from_pem(data: bytes) -> PrivateKey:
    """As it was stored.

    Raises:
        NotTrusted: it is no such key.

    """
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise NotTrusted(f"the key cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise NotTrusted("the key is not of an elliptic curve")
    return key


def new_request(key: PrivateKey) -> bytes:
    """A certificate signing request (DER) that proves possession of the key; the authority decides the name."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a request whose sender holds the private one.

    Raises:
        NotTrusted: it is no such request, or not of our curve.

    """
    try:
        if len(request) > MAX_REQUEST_BYTES:
            raise ValueError("it is too long")
        parsed = x509.load_der_x509_csr(request)
        key = parsed.public_key()
        valid = parsed.is_signature_valid
    except (ValueError, TypeError) as error:
        raise NotTrusted(f"the request for a certificate cannot be read: {error}") from error
    if not valid or not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != CURVE.name:
        raise NotTrusted("the request for a certificate is not signed with a P-256 key of its own")
    return key


def same_key(certificate: bytes, key: PrivateKey) -> bool:
    """Whether a certificate (PEM) is for that key."""
    return x509.load_pem_x509_certificate(certificate).public_key() == key.public_key()


# --- issuing -------------------------------------------------------------------------------------------------


def new_authority(cluster: ClusterId, key: PrivateKey, now: datetime) -> bytes:
    """The self-signed certificate (PEM) of a cluster's authority."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _AUTHORITY_PREFIX + cluster.hex())])
    builder = _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def issue(authority: bytes, key: PrivateKey, name: PeerName, public: ec.EllipticCurvePublicKey, now: datetime) -> bytes:
    """A node's certificate (PEM), signed by the authority (PEM) with its key."""
    issuer = x509.load_pem_x509_certificate(authority)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Hyperlane {name.role} {name.node.hex()}")])
    names = [x509.UniformResourceIdentifier(name.uri), *map(x509.DNSName, name.dns_names)]
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    builder = _builder(subject, issuer.subject, public, now, NODE_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


# --- reading -------------------------------------------------------------------------------------------------


def read_authority(data: bytes, *, der: bool = False) -> AuthorityCertificate:
    """An authority's certificate.

    Raises:
        NotTrusted: it is none of ours.

    """
    try:
        parsed = x509.load_der_x509_certificate(data) if der else x509.load_pem_x509_certificate(data)
        names = parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        text = str(names[0].value) if names else ""
        cluster = bytes.fromhex(text.removeprefix(_AUTHORITY_PREFIX))
        pem, plain = parsed.public_bytes(serialization.Encoding.PEM), parsed.public_bytes(serialization.Encoding.DER)
    except ValueError as error:
        raise NotTrusted(f"the authority's certificate cannot be read: {error}") from error
    if len(cluster) != ID_BYTES:
        raise NotTrusted("the certificate is not that of a Hyperlane cluster's authority")
    return AuthorityCertificate(pem, plain, ClusterId(cluster))


def read_certificate(pem: bytes) -> Certificate:
    """A node's certificate. Who signed it is not looked at: TLS does that.

    Raises:
        NotTrusted: it is no node's.

    """
    try:
        parsed = x509.load_pem_x509_certificate(pem)
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise NotTrusted(f"the certificate cannot be read: {error}") from error
    peer = Peer(only_name(uris), parsed.serial_number)
    return Certificate(pem, peer, parsed.not_valid_before_utc, parsed.not_valid_after_utc)
