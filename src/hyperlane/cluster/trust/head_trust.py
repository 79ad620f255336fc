"""The head's side of trust: its authority, its own certificate, tokens, members. Knows no socket."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hyperlane.cluster.trust import certificates
from hyperlane.cluster.trust.authority import Authority
from hyperlane.cluster.trust.binding import Machine
from hyperlane.cluster.trust.credentials import NodeCredentials
from hyperlane.cluster.trust.members import Member, MemberStore
from hyperlane.cluster.trust.node import node_identity
from hyperlane.cluster.trust.token import JoinToken
from hyperlane.cluster.trust.token_store import TokenRecord, TokenStore
from hyperlane.core import Address, NodeId
from hyperlane.errors import JoinRefused, NotTrusted
from hyperlane.wire.peer import ID_BYTES, NodeRole, Peer, PeerName

log = logging.getLogger(__name__)

MAX_NAME = 64
SELF = "this machine"


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Who knocks with a token. `request`: for a certificate; `address`: where the connection comes from."""

    token_id: bytes
    secret: bytes
    node: NodeId
    name: str
    request: bytes
    address: str


class HeadTrust:
    """The cluster that this machine is the head of. Is a `Trust`; every method from any thread or process."""

    def __init__(self, trust: Path, *, make: bool = True, machine: Machine | None = None) -> None:
        """Open the folder `trust`; at the first start make identity, authority and certificate.

        Raises:
            DuplicateIdentity: the folder was copied from another machine.
            NotTrusted: there is no cluster and `make` is False, or a file is damaged or open to others.
            OSError: the folder cannot be written.

        """
        self.folder = trust
        self.node = node_identity(trust, machine)
        self.authority = Authority(trust / "authority", make=make)
        self.tokens = TokenStore(trust / "authority" / "tokens.json")
        self.members = MemberStore(trust / "authority" / "members.json")
        self._credentials = self._own("head", NodeRole.HEAD)

    @property
    def is_new(self) -> bool:
        """Whether the cluster was made just now."""
        return self.authority.is_new

    @property
    def credentials(self) -> NodeCredentials:
        """As `Trust.credentials`."""
        if self._credentials.certificate.needs_renewal(datetime.now(UTC)):
            self._credentials = self._own("head", NodeRole.HEAD)
        return self._credentials

    def check(self, peer: Peer) -> None:
        """As `Trust.check`."""
        self.members.check(peer)

    def local_worker(self) -> Path:
        """The folder with credentials for worker processes that this head starts and other machines must reach."""
        return self._own("local", NodeRole.WORKER).file.parent

    # --- who joins -------------------------------------------------------------------------------------------

    def create_token(self, addresses: Sequence[Address], *, lifetime_s: float, uses: int) -> JoinToken:
        """A new token for this cluster's door at these addresses.

        Raises:
            UsageError: there are too many tokens.

        """
        fingerprint = self.authority.certificate.fingerprint
        return self.tokens.create(fingerprint, addresses, lifetime_s=lifetime_s, uses=uses, now=time.time())

    def admit(self, newcomer: Newcomer, shown: Peer | None) -> bytes:
        """A certificate (PEM) for who holds a token. `shown`: the certificate that it has already, if it shows one.

        Raises:
            JoinRefused: the token opens nothing, or somebody else has that identity.
            NotTrusted: the request makes no sense.

        """
        public = certificates.requested_key(newcomer.request)
        if len(newcomer.node) != ID_BYTES:
            raise NotTrusted(f"a node's id has {ID_BYTES} bytes, not {len(newcomer.node)}")
        self.tokens.verify(newcomer.token_id, newcomer.secret, time.time())
        if newcomer.node == self.node:
            raise JoinRefused("this is the head's own machine: it starts workers by itself (--local-workers)")
        _owns(shown, self.members.of(newcomer.node))
        self.tokens.spend(newcomer.token_id, newcomer.secret, newcomer.node, time.time())
        certificate = self.authority.issue(self._name(NodeRole.WORKER, newcomer.node), public)
        name = printable_name(newcomer.name)
        self.members.record(certificate, name, newcomer.address, lambda known: _owns(shown, known))
        return certificate.pem

    def renew(self, peer: Peer, request: bytes, address: str) -> bytes:
        """The next certificate (PEM) for a worker that shows a valid one.

        Raises:
            NotTrusted: it was removed, or it is no worker of ours.

        """

        def still_ours(known: Member | None) -> None:
            if peer.name.role is not NodeRole.WORKER or known is None or not known.has(peer.serial):
                raise NotTrusted(f"{peer} is no member of this cluster")

        self.check(peer)
        member = self.members.of(peer.name.node)
        certificate = self.authority.issue(peer.name, certificates.requested_key(request))
        self.members.record(certificate, member.name if member else "unnamed", address, still_ours)
        return certificate.pem

    def remove_node(self, which: str) -> tuple[Member, list[TokenRecord]]:
        """Take back a node's certificates, and the tokens whose secrets it knows.

        Raises:
            UsageError: no node, or several, are called so.

        """
        member = self.members.remove(which)
        return member, self.tokens.revoke_used_by(NodeId(bytes.fromhex(member.node)))

    # --- inside ----------------------------------------------------------------------------------------------

    def _name(self, role: NodeRole, node: NodeId) -> PeerName:
        return PeerName(self.authority.cluster, role, node)

    def _own(self, folder: str, role: NodeRole) -> NodeCredentials:
        """This machine's certificate for a role: kept, made anew when it is old or another's."""
        name = self._name(role, self.node)
        found = NodeCredentials.load(self.folder / folder)
        if found and found.name == name and not found.certificate.needs_renewal(datetime.now(UTC)):
            return found
        key = certificates.new_key()
        certificate = self.authority.issue(name, key.public_key())
        return NodeCredentials.store(self.folder / folder, self.authority.certificate, certificate.pem, key)


def _owns(shown: Peer | None, known: Member | None) -> None:
    """An identity that is taken is given to nobody but its owner: a token must not make one node into another.

    Raises:
        JoinRefused: another machine has it.

    """
    if known is None or not known.belongs or (shown is not None and known.has(shown.serial)):
        return
    raise JoinRefused(
        f"node {known.node[:8]} is a member already ({known.name}): if its state directory was copied, delete the "
        "folder 'trust' in it on one of the machines; if it lost its certificate, run "
        f"`hyperlane node remove {known.node[:8]}` on the head first"
    )


def printable_name(name: str) -> str:
    """A machine's name as it can be shown in a terminal and a log."""
    return "".join(c for c in name if c.isascii() and c.isprintable())[:MAX_NAME] or "unnamed"
