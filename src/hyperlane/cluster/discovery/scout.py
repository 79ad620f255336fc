"""Who is there: adverts, addresses by hand and registrations in, heartbeats out, a membership that changes.

Drives the pure state machine of `membership` with a clock. Which workers may be used is decided by whoever owns the
probe: a worker counts as ready when the probe reached it and was answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from hyperlane.cluster.discovery.advert import Heard, NodeKind
from hyperlane.cluster.discovery.candidates import Candidates
from hyperlane.cluster.discovery.interfaces import ways_to
from hyperlane.cluster.discovery.watch import MdnsWatch
from hyperlane.cluster.membership import (
    Answered,
    Change,
    Claim,
    Duplicate,
    Event,
    Means,
    Member,
    MemberId,
    Membership,
    MemberState,
    Passed,
    Seen,
    Silent,
    Source,
    Times,
    Unseen,
    apply,
)
from hyperlane.core import Address, NodeId, WorkerFacts
from hyperlane.errors import HyperlaneError

log = logging.getLogger(__name__)

BEAT_S = 2.0
PROBE_WITHIN_S = 4.0
SLOWEST_BEAT_S = 10.0
"""How often somebody is asked who has never answered."""
MAX_MEMBERS = 256
"""Beyond which no advert makes another."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What a worker answered: who it says it is, what it has, and how long a round trip to it takes (0: not known)."""

    claim: Claim
    facts: WorkerFacts
    rtt_s: float = 0.0


Probe = Callable[[Address, float], Awaitable[Probed]]
"""Asks the worker at an address within so many seconds, and raises HyperlaneError when it cannot be used."""


@dataclass(frozen=True, slots=True)
class ScoutOptions:
    """Whom to look for. `cluster`: as adverts have it; `own`: nodes that are ourselves; `addresses`: given by hand."""

    cluster: str
    protocol: int
    machine: str = ""
    own: frozenset[NodeId] = frozenset()
    addresses: tuple[Address, ...] = ()
    times: Times = field(default_factory=Times)


@dataclass(frozen=True, slots=True)
class Found:
    """A worker with what it last answered; `rtt_s` 0: not measured."""

    member: Member
    facts: WorkerFacts | None
    rtt_s: float


class Scout:
    """Looks from `start` to `close`, in one event loop; every method from there."""

    def __init__(self, options: ScoutOptions, probe: Probe, watch: MdnsWatch | None) -> None:
        """`watch` None: without mDNS. It is started and closed here."""
        self._options = options
        self._probe = probe
        self._watch = watch
        self._membership = Membership()
        self._candidates = Candidates()
        self._answers: dict[MemberId, Probed] = {}
        self._tasks: dict[MemberId | Address | str, asyncio.Task[None]] = {}
        self._readers: list[asyncio.Queue[Change]] = []
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Begin to look."""
        if self._watch is not None:
            self._watch.on_change = self._hear
            await self._watch.start()
            self._hear()
        for address in self._options.addresses:
            self._tasks[address] = asyncio.create_task(self._knock(address))
        self._tasks["clock"] = asyncio.create_task(self._tick())

    async def close(self) -> None:
        """Stop looking. Idempotent."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        if self._watch is not None:
            await self._watch.close()

    # --- what is known ---------------------------------------------------------------------------------------

    def found(self, *states: MemberState) -> tuple[Found, ...]:
        """Workers in one of these states; all of them when none is named."""
        chosen = self._membership.in_state(*(states or MemberState))
        answers = ((member, self._answers.get(member.id)) for member in chosen)
        return tuple(
            Found(member, answer.facts if answer else None, answer.rtt_s if answer else 0.0)
            for member, answer in answers
        )

    def duplicates(self) -> tuple[Duplicate, ...]:
        """Machines that share a node's identity."""
        return tuple(self._membership.duplicates.values())

    def heard(self, kind: NodeKind, *, others: bool = False) -> tuple[Heard, ...]:
        """Adverts of this cluster's nodes of a kind, or of others'."""
        adverts = self._watch.heard() if self._watch is not None else ()
        own = self._options.cluster
        return tuple(one for one in adverts if one.advert.kind is kind and (one.advert.cluster != own) == others)

    def changes(self) -> asyncio.Queue[Change]:
        """A queue of every change from now on, which begins with those who are ready already."""
        queue: asyncio.Queue[Change] = asyncio.Queue()
        for member in self._membership.in_state(MemberState.READY):
            queue.put_nowait(Change(member, None))
        self._readers.append(queue)
        return queue

    def forget(self, queue: asyncio.Queue[Change]) -> None:
        """Put no further change into a queue."""
        with suppress(ValueError):
            self._readers.remove(queue)

    async def wait_ready(self, count: int) -> tuple[Found, ...]:
        """Wait until so many workers are ready; all that are."""
        while len(ready := self.found(MemberState.READY)) < count:
            await self._changed.wait()
        return ready

    def register(self, claim: Claim, address: Address) -> None:
        """A worker of this cluster came to us and said where it is."""
        source = Source(Means.TOKEN, f"registered from {address.host}")
        self._see(claim, source, (address,))

    # --- looking ---------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        """Hold what mDNS hears now against what it heard before."""
        assert self._watch is not None
        current: set[tuple[MemberId, Source]] = set()
        for heard in self.heard(NodeKind.WORKER):
            advert = heard.advert
            if advert.node in self._options.own:
                continue
            member, source = MemberId(advert.node, advert.control_port), Source(Means.MDNS, heard.interface)
            same = bool(self._options.machine) and advert.machine == self._options.machine
            ways = ways_to(heard.hosts, self._watch.interfaces, same_machine=same)
            claim = Claim(member, advert.machine, advert.name, advert.cluster, advert.version, advert.protocol)
            addresses = tuple(Address(way.host, advert.control_port) for way in ways)
            if self._see(claim, source, addresses):
                current.add((member, source))
        for member, source in self._candidates.of(Means.MDNS) - current:
            self._candidates.remove(member, source)
            self._happen(Unseen(member, source))

    def _see(self, claim: Claim, source: Source, addresses: tuple[Address, ...]) -> bool:
        """A worker is there, the likeliest address first. False when it is somebody's copy, or one too many."""
        is_new = claim.member not in self._membership.members
        if is_new and source.means is Means.MDNS and len(self._membership.members) >= MAX_MEMBERS:
            return False  # strangers' adverts must not crowd out those who are named, or show a certificate
        self._happen(Seen(claim, source, addresses[0] if addresses else None))
        known = self._membership.members.get(claim.member)
        if known is None or known.claim.machine != claim.machine:
            return False
        self._candidates.put(claim.member, source, addresses)
        if claim.member not in self._tasks:
            self._tasks[claim.member] = asyncio.create_task(self._beat(claim.member))
        return True

    async def _beat(self, member: MemberId) -> None:
        """Ask one worker again and again, until it is gone."""
        pause_s = BEAT_S
        try:
            while (known := self._membership.members.get(member)) is not None:
                if await self._ask(known):
                    pause_s = BEAT_S
                elif known.state is MemberState.JOINING:
                    pause_s = min(pause_s * 1.5, SLOWEST_BEAT_S)
                await self._candidates.news(member, pause_s)
        finally:
            self._tasks.pop(member, None)
            self._answers.pop(member, None)
            self._candidates.drop(member)

    async def _ask(self, known: Member) -> bool:
        """One heartbeat over the best way that works. Whether it was answered."""
        if known.claim.protocol != self._options.protocol:
            self._happen(Silent(known.id, _other_protocol(known.claim, self._options.protocol)))
            return False
        reason = "none of its addresses is on a network of this machine"
        interfaces = self._watch.interfaces if self._watch is not None else ()
        for address in self._candidates.in_order(known.id, time.monotonic(), interfaces):
            try:
                answer = await self._probe(address, PROBE_WITHIN_S)
            except HyperlaneError as error:
                reason = str(error)
                self._candidates.failed(known.id, address, time.monotonic())
                continue
            if (answer.claim.member, answer.claim.machine) == (known.id, known.claim.machine):
                self._answers[known.id] = answer
                self._happen(Answered(answer.claim, address))
                return True
            reason = f"at {address} another worker answers, {answer.claim.name}"
            if answer.claim.member == known.id:
                self._happen(Answered(answer.claim, address))  # a copy: noted as one
        self._happen(Silent(known.id, reason))
        return False

    async def _knock(self, address: Address) -> None:
        """Find out who is at an address that was given by hand, again whenever it is gone."""
        source = Source(Means.STATIC, str(address))
        while True:
            if not any(source in member.sources for member in self._membership.members.values()):
                try:
                    answer = await self._probe(address, PROBE_WITHIN_S)
                except HyperlaneError as error:
                    log.info("nobody at %s yet: %s", address, error)
                else:
                    self._happen(Answered(answer.claim, address))
                    if self._see(answer.claim, source, (address,)):
                        self._answers[answer.claim.member] = answer
            await asyncio.sleep(BEAT_S)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._happen(Passed())
            if self._watch is not None:
                self._hear()  # who is heard but was gone, or a copy whose original has left, may come in now

    # --- what follows ----------------------------------------------------------------------------------------

    def _happen(self, event: Event) -> None:
        known = set(self._membership.duplicates)
        self._membership, changes = apply(self._membership, event, time.monotonic(), self._options.times)
        for key in set(self._membership.duplicates) - known:
            log.warning("%s", self._membership.duplicates[key])
        for change in changes:
            log.info("%s '%s' is %s", change.member.id, change.member.claim.name, change.member.state)
            for queue in self._readers:
                queue.put_nowait(change)
        if changes:
            told, self._changed = self._changed, asyncio.Event()
            told.set()


def _other_protocol(claim: Claim, own: int) -> str:
    older = "it" if claim.protocol < own else "Hyperlane on this machine"
    return f"it speaks protocol {claim.protocol} (version {claim.version}), this machine {own}: update {older}"
