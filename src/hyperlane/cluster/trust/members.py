"""The nodes that an authority has let in, the certificates they got, and who was removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperlane.cluster.trust.certificates import Certificate
from hyperlane.cluster.trust.registry import Registry
from hyperlane.core import NodeId
from hyperlane.errors import NotTrusted, UsageError
from hyperlane.wire.peer import Peer

Clock = Callable[[], float]
"""Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was handed out. `serial` in hex; `until`: seconds since 1970."""

    serial: str
    until: float
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """One node. `name`: what it calls itself; `address`: where it joined from; `removed_at` None: it belongs to us."""

    node: str
    name: str
    address: str
    joined_at: float
    certificates: tuple[Issued, ...]
    removed_at: float | None = None

    @property
    def belongs(self) -> bool:
        """Whether it is one of us now: not removed, and with a certificate that is valid."""
        return self.removed_at is None and bool(self.certificates)

    def has(self, serial: int) -> bool:
        """Whether a certificate is one of its own, and was not taken back."""
        return any(int(issued.serial, 16) == serial and not issued.revoked for issued in self.certificates)

    @property
    def until(self) -> float:
        """When its newest certificate ends; seconds since 1970."""
        return max((issued.until for issued in self.certificates), default=0.0)


Allow = Callable[[Member | None], None]
"""Raises NotTrusted unless a node, as it is known (None: not at all), may get another certificate."""


class MemberStore:
    """The members of one cluster, in a file that `hyperlane node` and a running head share."""

    def __init__(self, path: Path, clock: Clock = time.time) -> None:
        self._registry = Registry(path, Member)
        self._clock = clock
        self._stamp: tuple[int, int] | None = None
        self._revoked: frozenset[int] = frozenset()

    def all(self) -> tuple[Member, ...]:
        """Every node, removed ones too while their certificates would still be valid."""
        return self._registry.read()

    def record(self, certificate: Certificate, name: str, address: str, allow: Allow = lambda _known: None) -> None:
        """Note a certificate before it is handed out. A node that was removed belongs to us again.

        `allow` is asked while nobody else can change anything.

        Raises:
            NotTrusted: what `allow` raises; then nothing is noted.

        """
        now, node = self._clock(), certificate.peer.name.node.hex()
        issued = Issued(f"{certificate.peer.serial:x}", certificate.until.timestamp())
        with self._registry.change() as entries:
            entries.items[:] = [kept for member in entries.items if (kept := _without_ended(member, now))]
            at = next((i for i, member in enumerate(entries.items) if member.node == node), None)
            known = entries.items[at] if at is not None else None
            allow(known)
            if at is None or known is None:
                entries.items.append(Member(node, name, address, now, (issued,)))
            else:
                certificates = (*known.certificates, issued)
                entries.items[at] = Member(node, name, address, known.joined_at, certificates)

    def of(self, node: NodeId) -> Member | None:
        """A node that belongs to us; its certificates are those that are valid."""
        now = self._clock()
        known = (_without_ended(one, now) for one in self.all() if one.node == node.hex())
        return next((one for one in known if one is not None and one.removed_at is None), None)

    def remove(self, which: str) -> Member:
        """Take back every certificate of the node with that name, or whose id begins so.

        Raises:
            UsageError: there is none, or several.

        """
        with self._registry.change() as entries:
            found = [i for i, member in enumerate(entries.items) if _is_called(member, which)]
            if len(found) != 1:
                kind = "several nodes are" if found else "no node is"
                raise UsageError(f"{kind} called '{which}'; `hyperlane node list` shows names and ids")
            member = entries.items[found[0]]
            taken = tuple(replace(issued, revoked=True) for issued in member.certificates)
            entries.items[found[0]] = replace(member, certificates=taken, removed_at=self._clock())
        return member

    def revoked(self) -> frozenset[int]:
        """Serial numbers that were taken back and would still be valid. Looks at the file only when it was changed."""
        stamp = self._registry.stamp()
        if stamp != self._stamp:
            self._revoked = _revoked(self.all(), self._clock())
            self._stamp = stamp
        return self._revoked

    def check(self, peer: Peer) -> None:
        """Refuse a certificate that was taken back.

        Raises:
            NotTrusted: it was.

        """
        if peer.serial in self.revoked():
            raise NotTrusted(f"{peer} was removed from the cluster")


def _is_called(member: Member, which: str) -> bool:
    if member.removed_at is not None or not which:
        return False
    return member.name == which or (len(which) >= 4 and member.node.startswith(which.lower()))


def _without_ended(member: Member, now: float) -> Member | None:
    certificates = tuple(issued for issued in member.certificates if issued.until > now)
    if member.removed_at is not None and not certificates:
        return None
    return replace(member, certificates=certificates)


def _revoked(members: Sequence[Member], now: float) -> frozenset[int]:
    return frozenset(
        int(issued.serial, 16)
        for member in members
        for issued in member.certificates
        if issued.revoked and issued.until > now
    )
