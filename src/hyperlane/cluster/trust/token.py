"""A join token as one word: where a cluster's door is, whose it must be, and what opens it. Pure."""

from __future__ import annotations

import base64
import ipaddress
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from hyperlane.core import Address
from hyperlane.errors import JoinRefused

PREFIX = "hl1"
"""Says what the word is, and which version: another layout gets another number."""

TOKEN_ID_BYTES = 8
SECRET_BYTES = 16
FINGERPRINT_BYTES = 32
MAX_ADDRESSES = 8
_CHECKSUM_BYTES = 4
_FIXED_BYTES = TOKEN_ID_BYTES + SECRET_BYTES + FINGERPRINT_BYTES
_NAME, _IPV4, _IPV6 = 0, 4, 6


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a machine needs to join. `fingerprint`: SHA-256 of the authority's certificate (DER)."""

    token_id: bytes
    secret: bytes
    fingerprint: bytes
    addresses: tuple[Address, ...]

    def __repr__(self) -> str:
        """Without the secret: tokens end up in logs."""
        return f"JoinToken({self.token_id.hex()}, {', '.join(map(str, self.addresses))})"

    def encode(self) -> str:
        """The word: letters and digits that a double click selects.

        Raises:
            ValueError: there are too many addresses, or a name is too long.

        """
        if not 0 < len(self.addresses) <= MAX_ADDRESSES:
            raise ValueError(f"a token holds 1 to {MAX_ADDRESSES} addresses, not {len(self.addresses)}")
        body = self.token_id + self.secret + self.fingerprint
        body += bytes([len(self.addresses)]) + b"".join(map(_packed, self.addresses))
        body += zlib.crc32(PREFIX.encode() + body).to_bytes(_CHECKSUM_BYTES, "big")
        return PREFIX + _base32(body)

    @classmethod
    def decode(cls, word: str) -> JoinToken:
        """Read a word; case and white space around it do not matter.

        Raises:
            JoinRefused: it is no token, of another version, or was mistyped.

        """
        text = "".join(word.split()).lower()
        if not text.startswith("hl"):
            raise JoinRefused(f"a join token begins with '{PREFIX}'; `hyperlane token create` on the head makes one")
        if not text.startswith(PREFIX):
            raise JoinRefused(f"this token begins with '{text[:3]}': it is of another version; update Hyperlane here")
        try:
            rest = text[len(PREFIX) :]
            data = base64.b32decode(rest.upper() + "=" * (-len(rest) % 8))
        except ValueError:
            data = b""
        if _base32(data) != rest:
            data = b""  # the last character may hold bits that mean nothing: they must be those that were written
        body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if len(body) <= _FIXED_BYTES or zlib.crc32(PREFIX.encode() + body).to_bytes(_CHECKSUM_BYTES, "big") != checksum:
            raise JoinRefused("a character of the token is wrong or missing: copy it again, whole")
        secret_at, fingerprint_at = TOKEN_ID_BYTES, TOKEN_ID_BYTES + SECRET_BYTES
        return cls(
            body[:secret_at],
            body[secret_at:fingerprint_at],
            body[fingerprint_at:_FIXED_BYTES],
            _addresses(body[_FIXED_BYTES:]),
        )


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _packed(address: Address) -> bytes:
    port = address.port.to_bytes(2, "big")
    try:
        ip = ipaddress.ip_address(address.host)
    except ValueError:
        name = address.host.encode("ascii")
        if len(name) > 255:
            raise ValueError(f"the host name {address.host} is too long") from None
        return bytes([_NAME, len(name)]) + name + port
    return bytes([ip.version]) + ip.packed + port


def _addresses(data: bytes) -> tuple[Address, ...]:
    """The checksum holds: only a token that was made otherwise than by `encode` fails here."""
    try:
        found, at = [], 1
        for _ in range(data[0]):
            kind, at = data[at], at + 1
            size = {_IPV4: 4, _IPV6: 16}.get(kind, 0)
            if kind == _NAME:
                size, at = data[at], at + 1
            elif not size:
                raise ValueError("an address of an unknown kind")
            host, port = data[at : at + size], data[at + size : at + size + 2]
            if len(host) != size or len(port) != 2:
                raise ValueError("it ends too early")
            name = host.decode("ascii") if kind == _NAME else str(ipaddress.ip_address(host))
            found.append(Address(name, int.from_bytes(port, "big")))
            at += size + 2
    except (ValueError, IndexError) as error:
        raise JoinRefused(f"the token's addresses make no sense: {error}") from error
    if not found or at != len(data):
        raise JoinRefused("the token's addresses make no sense")
    return tuple(found)


def merge(first: Sequence[Address], then: Sequence[Address]) -> tuple[Address, ...]:
    """As many addresses as a token holds, none twice, in this order."""
    return tuple(dict.fromkeys((*first, *then)))[:MAX_ADDRESSES]
