"""mDNS on all suitable interfaces of this machine, as they come and go. Lives in one event loop.

Knows no worker: what is heard is handed on as it came.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from hyperlane.cluster.discovery import system
from hyperlane.cluster.discovery.advert import Advert, Heard
from hyperlane.cluster.discovery.interfaces import Interface, suitable
from hyperlane.cluster.discovery.mdns import MdnsInterface

log = logging.getLogger(__name__)

LOOK_EVERY_S = 3.0
"""How long an interface that has come up, or changed its address, may go unnoticed."""

ListInterfaces = Callable[[], Sequence[Interface]]


class MdnsWatch:
    """All interfaces, from `start` to `close`. `on_change` is called in the loop whenever what is heard changes."""

    def __init__(
        self,
        *,
        browse: bool = True,
        loopback: bool = False,
        only: Sequence[str] = (),
        list_interfaces: ListInterfaces = system.interfaces,
    ) -> None:
        """`only`: names of interfaces to keep to; empty: all that are suitable. `loopback`: this machine's own too."""
        self._browse = browse
        self._loopback = loopback
        self._only = frozenset(only)
        self._list = list_interfaces
        self._open: dict[str, MdnsInterface] = {}
        self._advert: Advert | None = None
        self._looking: asyncio.Task[None] | None = None
        self.interfaces: tuple[Interface, ...] = ()
        self.failures: dict[str, str] = {}
        self.on_change: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Open what is there now, and keep looking."""
        await self.look()
        self._looking = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        """Say goodbye everywhere. Idempotent."""
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
        self._looking = None
        opened, self._open = self._open, {}
        await asyncio.gather(*(one.close() for one in opened.values()))

    async def advertise(self, advert: Advert) -> None:
        """Say this on every interface from now on."""
        self._advert = advert
        await asyncio.gather(*(one.advertise(advert) for one in self._open.values()))

    def heard(self) -> tuple[Heard, ...]:
        """What is heard at the moment, by the best interface first."""
        opened = sorted(self._open.values(), key=lambda one: one.interface.sort_key)
        return tuple(heard for one in opened for heard in one.heard.values())

    def refused(self) -> dict[str, str]:
        """Adverts that made no sense, and why."""
        return {name: why for one in self._open.values() for name, why in one.refused.items()}

    async def look(self) -> None:
        """See which interfaces there are, and open and close accordingly."""
        self.interfaces = suitable(await asyncio.to_thread(self._list), loopback=self._loopback)
        wanted = {one.name: one for one in self.interfaces if not self._only or one.name in self._only}
        for name in [name for name, one in self._open.items() if wanted.get(name) != one.interface]:
            log.info("mDNS leaves %s", name)
            await self._open.pop(name).close()
            self.on_change()
        self.failures = {name: why for name, why in self.failures.items() if name in wanted}
        for name, interface in wanted.items():
            if name not in self._open:
                await self._enter(interface)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except OSError as error:  # an interface went while it was looked at
                log.info("looking at the interfaces: %s", error)

    def _tell(self) -> None:
        self.on_change()

    async def _enter(self, interface: Interface) -> None:
        one = MdnsInterface(interface, self._tell)
        try:
            await one.start()
        except OSError as error:
            if interface.name not in self.failures:
                log.warning("mDNS does not work on %s: %s", interface.name, error)
            self.failures[interface.name] = str(error)
            return
        self.failures.pop(interface.name, None)
        self._open[interface.name] = one
        log.info("mDNS on %s (%s)", interface.name, interface.kind)
        if self._advert is not None:
            await one.advertise(self._advert)
        if self._browse:
            one.browse()
