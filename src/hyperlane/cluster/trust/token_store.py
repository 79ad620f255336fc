"""The tokens that a head has made: hashes of their secrets, when they end, how often they may be used."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperlane.cluster.trust.registry import Registry
from hyperlane.cluster.trust.token import SECRET_BYTES, TOKEN_ID_BYTES, JoinToken
from hyperlane.core import Address, NodeId
from hyperlane.errors import JoinRefused, UsageError

FORGET_AFTER_S = 30 * 86400.0
"""How long a token that opens nothing any more is still listed."""

MAX_TOKENS = 1000


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """One token, without its secret. Times are seconds since 1970; `used_by`: ids of the nodes that joined with it."""

    token_id: str
    secret_sha256: str
    created_at: float
    expires_at: float
    uses: int
    used_by: tuple[str, ...] = ()
    revoked: bool = False

    def state(self, now: float) -> str:
        """Why it opens nothing; empty while it does."""
        if self.revoked:
            return "revoked"
        if now >= self.expires_at:
            return "expired"
        return "used up" if len(self.used_by) >= self.uses else ""


class TokenStore:
    """The tokens of one cluster, in a file that `hyperlane token` and a running head share."""

    def __init__(self, path: Path) -> None:
        self._registry = Registry(path, TokenRecord)

    def create(
        self, fingerprint: bytes, addresses: Sequence[Address], *, lifetime_s: float, uses: int, now: float
    ) -> JoinToken:
        """Make a token; its secret is in the returned value alone.

        Raises:
            UsageError: there are too many tokens already.

        """
        token = JoinToken(
            secrets.token_bytes(TOKEN_ID_BYTES), secrets.token_bytes(SECRET_BYTES), fingerprint, tuple(addresses)
        )
        record = TokenRecord(token.token_id.hex(), _hashed(token.secret), now, now + lifetime_s, uses)
        with self._registry.change() as entries:
            entries.items[:] = [one for one in entries.items if one.expires_at + FORGET_AFTER_S > now]
            if len(entries.items) >= MAX_TOKENS:
                raise UsageError(f"there are {MAX_TOKENS} tokens already; those that ended are forgotten in time")
            entries.items.append(record)
        return token

    def all(self) -> tuple[TokenRecord, ...]:
        """Every token, the oldest first."""
        return self._registry.read()

    def spend(self, token_id: bytes, secret: bytes, node: NodeId, now: float) -> TokenRecord:
        """Use a token once, on disk before this returns.

        A wrong secret and an unknown id take the same time and are told the same; only who knows the secret learns
        what became of the token.

        Raises:
            JoinRefused: it opens nothing.

        """
        with self._registry.change() as entries:
            at = _find(entries.items, token_id, secret, now)
            entries.items[at] = replace(entries.items[at], used_by=(*entries.items[at].used_by, node.hex()))
            return entries.items[at]

    def verify(self, token_id: bytes, secret: bytes, now: float) -> None:
        """See whether a token opens anything, without using it. As `spend` for the rest."""
        _find(self._registry.read(), token_id, secret, now)

    def revoke(self, prefix: str) -> TokenRecord:
        """Take back the token whose id begins so.

        Raises:
            UsageError: there is none, or several.

        """
        with self._registry.change() as entries:
            found = [i for i, one in enumerate(entries.items) if prefix and one.token_id.startswith(prefix.lower())]
            if len(found) != 1:
                which = "several tokens have ids" if found else "no token has an id"
                raise UsageError(f"{which} beginning with '{prefix}'; `hyperlane token list` shows them")
            record = entries.items[found[0]] = replace(entries.items[found[0]], revoked=True)
        return record

    def revoke_used_by(self, node: NodeId) -> list[TokenRecord]:
        """Take back every token whose secret a node knows; those that were not taken back before."""
        taken = []
        with self._registry.change() as entries:
            for i, one in enumerate(entries.items):
                if node.hex() in one.used_by and not one.revoked:
                    entries.items[i] = replace(one, revoked=True)
                    taken.append(one)
        return taken


def _find(records: Sequence[TokenRecord], token_id: bytes, secret: bytes, now: float) -> int:
    """Where a token is that its holder knows the secret of, and that still opens something.

    Raises:
        JoinRefused: there is none.

    """
    at = next((i for i, one in enumerate(records) if one.token_id == token_id.hex()), None)
    record = records[at] if at is not None else _NOBODYS
    if not hmac.compare_digest(record.secret_sha256, _hashed(secret)) or at is None:
        raise JoinRefused("the token is not one of this cluster's")
    ended = record.state(now)
    if ended:
        raise JoinRefused(f"the token is {ended}: make another one with `hyperlane token create`")
    return at


def _hashed(secret: bytes) -> str:
    """A plain hash is enough for 128 random bits: there is nothing to guess."""
    return hashlib.sha256(b"hyperlane join secret\0" + secret).hexdigest()


_NOBODYS = TokenRecord("", _hashed(secrets.token_bytes(SECRET_BYTES)), 0.0, 0.0, 0)
