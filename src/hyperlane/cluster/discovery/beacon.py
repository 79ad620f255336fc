"""A worker that lets itself be found: mDNS on the LAN, and a word to its head's door, which needs no multicast.

Lives in the worker's event loop. Finds nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from hyperlane.cluster.discovery.advert import Advert
from hyperlane.cluster.discovery.watch import MdnsWatch
from hyperlane.errors import HyperlaneError

log = logging.getLogger(__name__)

REGISTER_EVERY_S = 20.0
REGISTER_AGAIN_S = 3.0
"""After a failure: the head may be starting."""

Register = Callable[[Advert], None]
"""Tells the head's door where this worker is. Blocking; raises HyperlaneError."""


class Beacon:
    """On from `start` to `close`."""

    def __init__(self, watch: MdnsWatch | None, register: Register | None) -> None:
        """`watch` None: without mDNS. `register` None: this worker knows no door."""
        self._watch = watch
        self._register = register
        self._registering: asyncio.Task[None] | None = None

    async def start(self, advert: Advert) -> None:
        """Say from now on that this worker is there. What does not work is logged, and tried again."""
        if self._watch is not None:
            await self._watch.advertise(advert)
            await self._watch.start()
        if self._register is not None:
            self._registering = asyncio.create_task(self._keep_registering(self._register, advert))

    async def close(self) -> None:
        """Say goodbye. Idempotent."""
        if self._registering is not None:
            self._registering.cancel()
            with suppress(asyncio.CancelledError):
                await self._registering
            self._registering = None
        if self._watch is not None:
            await self._watch.close()

    async def _keep_registering(self, register: Register, advert: Advert) -> None:
        is_known = False
        while True:
            try:
                await asyncio.to_thread(register, advert)
            except (HyperlaneError, OSError) as error:
                log.log(
                    logging.WARNING if is_known else logging.INFO, "the head was not told of this worker: %s", error
                )
                is_known = False
            else:
                is_known = True
            await asyncio.sleep(REGISTER_EVERY_S if is_known else REGISTER_AGAIN_S)
