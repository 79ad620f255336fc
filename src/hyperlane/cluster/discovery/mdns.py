"""mDNS on one interface: what is advertised there and what is heard there. Lives in one event loop.

One instance for each interface, so that an advert holds that interface's addresses alone, and that what is heard is
known to come from there. Knows nothing of trust or membership.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from hyperlane.cluster.discovery.advert import MAX_ADDRESSES, SERVICE, Advert, BadAdvert, Heard, read_advert, txt_of
from hyperlane.cluster.discovery.interfaces import Interface

log = logging.getLogger(__name__)

MAX_HEARD = 256
"""Adverts of one interface; a flood of them must not fill the memory."""
MAX_RESOLVING = 16
RESOLVE_WITHIN_MS = 3000
STARTS_WITHIN_S = 5.0


class MdnsInterface:
    """One interface, from `start` to `close`. `on_change` is called in the event loop whenever `heard` changes."""

    def __init__(self, interface: Interface, on_change: Callable[[], None]) -> None:
        self.interface = interface
        self.heard: dict[str, Heard] = {}
        self.refused: dict[str, str] = {}
        self._on_change = on_change
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._own: zeroconf.ServiceInfo | None = None
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._announcing: list[Any] = []

    async def start(self) -> None:
        """Open the sockets.

        Raises:
            OSError: the port is taken by somebody who does not share it, or the interface is gone.

        """
        places: list[str | int] = [*self.interface.ipv4]
        if self.interface.has_ipv6:
            places.append(self.interface.index)
        try:
            self._zeroconf = AsyncZeroconf(interfaces=places)
        except RuntimeError as error:  # its addresses are gone meanwhile
            raise OSError(str(error)) from error
        try:
            await self._zeroconf.zeroconf.async_wait_for_start(STARTS_WITHIN_S)
        except zeroconf.NotRunningException as error:
            await self.close()
            raise OSError(f"mDNS did not start on {self.interface.name}") from error
        except asyncio.CancelledError:
            await self.close()
            raise
        for reader in self._zeroconf.zeroconf.engine.readers:
            _hear_this_interface_only(reader.sock, self.interface.name)

    async def close(self) -> None:
        """Say goodbye and close the sockets. Idempotent."""
        if self._browser is not None:
            await self._browser.async_cancel()
        for task in self._resolving.values():
            task.cancel()
        await asyncio.gather(*self._resolving.values(), *self._announcing, return_exceptions=True)
        if self._zeroconf is not None:
            with suppress(OSError):
                await self._zeroconf.async_close()
        self._browser = self._zeroconf = self._own = None
        self._announcing.clear()

    # --- saying ----------------------------------------------------------------------------------------------

    async def advertise(self, advert: Advert) -> None:
        """Say this from now on, in place of what was said before."""
        assert self._zeroconf is not None
        info = self._info(advert)
        before, self._own = self._own, info
        if before is None:
            # The name holds 16 random bytes: nobody else has it, and asking around would take a second.
            announced = await self._zeroconf.async_register_service(info, cooperating_responders=True)
        elif before.name == info.name:
            announced = await self._zeroconf.async_update_service(info)
        else:
            self._announcing.append(await self._zeroconf.async_unregister_service(before))
            announced = await self._zeroconf.async_register_service(info, cooperating_responders=True)
        self._announcing = [one for one in self._announcing if not one.done()] + [announced]

    def _info(self, advert: Advert) -> zeroconf.ServiceInfo:
        # With the machine: a copy of a node's folder must not answer to the same name.
        label = f"{advert.node.hex()[:16]}-{advert.machine[:8]}-{advert.control_port}-{self.interface.index}"
        return zeroconf.ServiceInfo(
            SERVICE,
            f"{label}.{SERVICE}",
            port=advert.control_port,
            properties=txt_of(advert),
            server=f"hyperlane-{label}.local.",
            addresses=[one.ip.packed for one in self.interface.networks][:MAX_ADDRESSES],
        )

    # --- hearing ---------------------------------------------------------------------------------------------

    def browse(self) -> None:
        """Listen for others from now on, and ask for them."""
        assert self._zeroconf is not None
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._changed])

    def _changed(
        self,
        zeroconf: zeroconf.Zeroconf,
        service_type: str,
        name: str,
        state_change: zeroconf.ServiceStateChange,
    ) -> None:
        if state_change.name == "Removed":
            self._forget(name)
        elif name not in self._resolving and len(self._resolving) < MAX_RESOLVING:
            task = asyncio.get_running_loop().create_task(self._resolve(name))
            self._resolving[name] = task
            task.add_done_callback(lambda _: self._resolving.pop(name, None))

    def _forget(self, name: str) -> None:
        self.refused.pop(name, None)
        if self.heard.pop(name, None) is not None:
            self._on_change()

    async def _resolve(self, name: str) -> None:
        assert self._zeroconf is not None
        try:
            info = AsyncServiceInfo(SERVICE, name)
            if not await info.async_request(self._zeroconf.zeroconf, RESOLVE_WITHIN_MS):
                return
            advert = read_advert(info.properties, info.port or 0)
        except (BadAdvert, zeroconf.BadTypeInNameException) as error:
            self._refuse(name, str(error))
            return
        if name not in self.heard and len(self.heard) >= MAX_HEARD:
            self._refuse(name, f"more than {MAX_HEARD} adverts")
            return
        found = Heard(self.interface.name, name, advert, tuple(info.parsed_scoped_addresses())[:MAX_ADDRESSES])
        if self.heard.get(name) != found:
            self.heard[name] = found
            self._on_change()

    def _refuse(self, name: str, why: str) -> None:
        if name not in self.refused and len(self.refused) < MAX_HEARD:
            shown = "".join(c for c in name if c.isascii() and c.isprintable())[:80]
            log.info("an advert on %s is not used (%s): %s", self.interface.name, shown, why)
            self.refused[name] = why


def _hear_this_interface_only(sock: socket.socket, interface: str) -> None:
    """Linux gives a socket what arrives for its group on any interface that anybody joined the group on.

    Without this, what is heard on docker0 would be answered on the LAN, with docker0's addresses.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    except OSError as error:
        log.info("mDNS on %s also hears other interfaces: %s", interface, error)
