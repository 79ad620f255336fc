"""Which workers there are: a state machine over sightings and heartbeats. Pure: time is an argument.

JOINING: seen, has not answered yet. READY: answers. SUSPECT: does not answer at the moment, and keeps its place.
GONE: has not answered for so long, or was never there. One loss, or an advert that fades, evicts nobody.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from hyperlane.core import Address, NodeId


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds since a member last answered, until it counts as suspect, and as gone.

    A heartbeat goes out every 2 s: suspect means that three were lost in a row.
    """

    suspect_after_s: float = 6.0
    gone_after_s: float = 30.0


class MemberState(enum.StrEnum):
    """How a worker is."""

    JOINING = "joining"
    READY = "ready"
    SUSPECT = "suspect"
    GONE = "gone"


@dataclass(frozen=True, slots=True, order=True)
class MemberId:
    """One worker process: the node that it belongs to and the port of its control plane."""

    node: NodeId
    port: int

    def __str__(self) -> str:
        return f"{self.node.hex()[:8]}:{self.port}"


class Means(enum.StrEnum):
    """How a worker was found, in the order in which it is looked for."""

    LOCAL = "local"
    MDNS = "mdns"
    STATIC = "static"
    TOKEN = "token"  # noqa: S105 (no password)


@dataclass(frozen=True, slots=True)
class Source:
    """One way in which a worker was found. `detail`: the interface, or the address that was given."""

    means: Means
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.means} ({self.detail})" if self.detail else str(self.means)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a worker says of itself. `machine`: a hash of what tells its machine from others; empty: not known."""

    member: MemberId
    machine: str
    name: str
    cluster: str
    version: str
    protocol: int


@dataclass(frozen=True, slots=True)
class Member:
    """A worker. Times in seconds of the caller's clock; `answered_s` None: it never has.

    `address`: where it answered, or would be tried first. `reason`: why it does not answer; empty when it does.
    """

    claim: Claim
    state: MemberState
    since_s: float
    seen_s: float
    answered_s: float | None = None
    address: Address | None = None
    sources: frozenset[Source] = frozenset()
    reason: str = ""

    @property
    def id(self) -> MemberId:
        """Which worker it is."""
        return self.claim.member


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Two machines with one node's identity: a state directory was copied. The first one keeps it."""

    node: NodeId
    first: Claim
    second: Claim
    seen_s: float

    def __str__(self) -> str:
        return (
            f"'{self.first.name}' and '{self.second.name}' are two machines with the identity of node "
            f"{self.node.hex()[:8]}: the state directory of one was copied to the other. '{self.second.name}' is left "
            "out; on the one that has the copy, delete the folder 'trust' in its state directory and join again"
        )


@dataclass(frozen=True, slots=True)
class Membership:
    """Everybody who is not gone, and who pretends to be somebody else."""

    members: dict[MemberId, Member] = field(default_factory=dict)
    duplicates: dict[tuple[NodeId, str], Duplicate] = field(default_factory=dict)

    def in_state(self, *states: MemberState) -> tuple[Member, ...]:
        """Those in one of these states, always in the same order."""
        return tuple(self.members[key] for key in sorted(self.members) if self.members[key].state in states)


# --- what happens --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """A source says that a worker is there. Repeated while it says so."""

    claim: Claim
    source: Source
    address: Address | None = None


@dataclass(frozen=True, slots=True)
class Unseen:
    """A source no longer says so: its advert has ended, or its interface is gone."""

    member: MemberId
    source: Source


@dataclass(frozen=True, slots=True)
class Answered:
    """A heartbeat was answered, at this address, by a worker that claims to be this one."""

    claim: Claim
    address: Address


@dataclass(frozen=True, slots=True)
class Silent:
    """A heartbeat was not answered."""

    member: MemberId
    reason: str


@dataclass(frozen=True, slots=True)
class Passed:
    """Time passed."""


Event = Seen | Unseen | Answered | Silent | Passed


@dataclass(frozen=True, slots=True)
class Change:
    """A member's state is another one. `before` None: it is new."""

    member: Member
    before: MemberState | None

    @property
    def is_join(self) -> bool:
        """Whether it can be used from now on, and could not before."""
        return self.member.state is MemberState.READY and self.before in (None, MemberState.JOINING)

    @property
    def is_leave(self) -> bool:
        """Whether it is gone."""
        return self.member.state is MemberState.GONE


def apply(before: Membership, event: Event, now_s: float, times: Times) -> tuple[Membership, tuple[Change, ...]]:
    """The membership after an event, and whose state changed. Events come in order of time."""
    members, duplicates = dict(before.members), dict(before.duplicates)
    match event:
        case Seen(claim, source, address):
            if not _is_duplicate(members, duplicates, claim, now_s):
                known = members.get(claim.member) or Member(claim, MemberState.JOINING, now_s, now_s)
                sources = known.sources | {source}
                members[claim.member] = replace(known, seen_s=now_s, sources=sources, address=known.address or address)
        case Unseen(member, source):
            if member in members:
                members[member] = replace(members[member], sources=members[member].sources - {source})
        case Answered(claim, address):
            if not _is_duplicate(members, duplicates, claim, now_s):
                known = members.get(claim.member) or Member(claim, MemberState.JOINING, now_s, now_s)
                members[claim.member] = replace(
                    known, claim=claim, seen_s=now_s, answered_s=now_s, address=address, reason=""
                )
        case Silent(member, reason):
            if member in members:
                members[member] = replace(members[member], reason=reason)
        case Passed():
            duplicates = {k: one for k, one in duplicates.items() if now_s - one.seen_s < times.gone_after_s}
    return _settled(before, members, duplicates, now_s, times)


def _settled(
    before: Membership,
    members: dict[MemberId, Member],
    duplicates: dict[tuple[NodeId, str], Duplicate],
    now_s: float,
    times: Times,
) -> tuple[Membership, tuple[Change, ...]]:
    """Every member in the state that the clock and its heartbeats say; those who are gone left out."""
    changes = []
    for key, member in list(members.items()):
        state = state_of(member, now_s, times)
        was = before.members[key].state if key in before.members else None
        if state is not member.state:
            members[key] = replace(member, state=state, since_s=now_s)
        if state is not was:
            changes.append(Change(members[key], was))
        if state is MemberState.GONE:
            del members[key]
    return Membership(members, duplicates), tuple(changes)


def state_of(member: Member, now_s: float, times: Times) -> MemberState:
    """The state of a member at a time."""
    if member.answered_s is None:
        is_forgotten = not member.sources and now_s - member.seen_s >= times.suspect_after_s
        return MemberState.GONE if is_forgotten else MemberState.JOINING
    silent_s = now_s - member.answered_s
    if silent_s >= times.gone_after_s:
        return MemberState.GONE
    if silent_s >= times.suspect_after_s:
        return MemberState.SUSPECT
    return MemberState.READY


def _is_duplicate(
    members: dict[MemberId, Member],
    duplicates: dict[tuple[NodeId, str], Duplicate],
    claim: Claim,
    now_s: float,
) -> bool:
    """Whether another machine has this node's identity already; noted if so."""
    owner = owner_of(members.values(), claim)
    if owner is None:
        return False
    known = duplicates.get((claim.member.node, claim.machine))
    duplicates[claim.member.node, claim.machine] = Duplicate(
        claim.member.node, owner.claim, known.second if known else claim, now_s
    )
    return True


def owner_of(members: Iterable[Member], claim: Claim) -> Member | None:
    """The member on another machine that has the identity which a claim makes."""
    return next(
        (
            member
            for member in members
            if member.id.node == claim.member.node
            and member.claim.machine
            and claim.machine
            and member.claim.machine != claim.machine
        ),
        None,
    )
