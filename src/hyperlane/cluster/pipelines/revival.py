"""Starts this machine's own workers again: those that ended, and those that hang. Lives in the control plane's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from hyperlane.cluster.local import LocalWorkers
from hyperlane.core import Address

Replaced = Callable[[Address, Address | None], Awaitable[None]]
"""Told that a worker will not come back, and where its successor is, if there is one."""


class Revival:
    """At most one at a time; what happens meanwhile is seen to by the next one."""

    def __init__(self, local: LocalWorkers, replaced: Replaced) -> None:
        self._local = local
        self._replaced = replaced
        self._task: asyncio.Task[None] | None = None

    def begin(self, missing: Collection[Address], after_s: float = 0.0) -> None:
        """In so many seconds replace the workers that ended then, and those of `missing`, which do not answer."""
        if self._task is None or self._task.done():
            task = asyncio.create_task(self._run(missing, after_s))
            self._task = task

    async def close(self) -> None:
        """Start none again. Idempotent."""
        self._local.let_be()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self, missing: Collection[Address], after_s: float) -> None:
        await asyncio.sleep(after_s)
        for old, new in await asyncio.to_thread(self._local.start_again, missing):
            await self._replaced(old, new)
