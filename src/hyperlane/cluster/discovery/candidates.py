"""The addresses at which each worker may be, by how they were learnt, and which to try next. Opens no socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from hyperlane.cluster.discovery.interfaces import Interface, ways_to
from hyperlane.cluster.membership import Means, MemberId, Source
from hyperlane.core import Address

AVOIDED_S = 20.0
"""How long an address that did not answer comes after the others."""
MAX_ADDRESSES = 8
"""Of one worker, that are tried in one heartbeat."""


class Candidates:
    """Addresses by worker and source. Lives in one event loop."""

    def __init__(self) -> None:
        self._known: dict[MemberId, dict[Source, tuple[Address, ...]]] = {}
        self._failed: dict[tuple[MemberId, Address], float] = {}
        self._news: dict[MemberId, asyncio.Event] = {}

    def put(self, member: MemberId, source: Source, addresses: tuple[Address, ...]) -> None:
        """A source says: there, the likeliest first. In place of what it said before."""
        sources = self._known.setdefault(member, {})
        if sources.get(source) != addresses:
            sources[source] = addresses
            self._tell(member)

    def remove(self, member: MemberId, source: Source) -> None:
        """A source no longer says anything of a worker."""
        self._known.get(member, {}).pop(source, None)

    def drop(self, member: MemberId) -> None:
        """Forget which of a worker's addresses failed."""
        self._news.pop(member, None)
        for key in [key for key in self._failed if key[0] == member]:
            del self._failed[key]

    def failed(self, member: MemberId, address: Address, now_s: float) -> None:
        """An address did not answer."""
        self._failed[member, address] = now_s

    def of(self, means: Means) -> set[tuple[MemberId, Source]]:
        """Every worker with each source of a kind."""
        pairs = ((member, source) for member, sources in self._known.items() for source in sources)
        return {(member, source) for member, source in pairs if source.means is means}

    def in_order(self, member: MemberId, now_s: float, interfaces: Sequence[Interface] = ()) -> tuple[Address, ...]:
        """Where to try: over the best of our interfaces first, but what has just failed last."""
        known = {address: None for sources in self._known.get(member, {}).values() for address in sources}
        ways = ways_to([address.host for address in known], interfaces, same_machine=True)
        rank = {way.host: place for place, way in enumerate(ways)}
        order = sorted(known, key=lambda address: rank.get(address.host, len(rank)))

        def has_failed(address: Address) -> bool:
            failed_s = self._failed.get((member, address))
            return failed_s is not None and now_s - failed_s < AVOIDED_S

        return tuple(sorted(order, key=has_failed))[:MAX_ADDRESSES]

    async def news(self, member: MemberId, timeout_s: float) -> None:
        """Wait until there is another address to try, at most so long."""
        event = self._news.setdefault(member, asyncio.Event())
        event.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()

    def _tell(self, member: MemberId) -> None:
        if member in self._news:
            self._news[member].set()
