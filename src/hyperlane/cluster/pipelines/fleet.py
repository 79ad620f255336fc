"""All pipelines of a head: planned together at the start, each kept up by itself, with one crew and one spare.

What `node` starts, offers workers to, asks and ends. Lives in the control plane's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from hyperlane.cluster.local import LocalWorkers
from hyperlane.cluster.pipelines.arranging import Arranging
from hyperlane.cluster.pipelines.blame import Blame
from hyperlane.cluster.pipelines.company import Company
from hyperlane.cluster.pipelines.crew import Crew
from hyperlane.cluster.pipelines.facts import Pipeline
from hyperlane.cluster.pipelines.revival import Revival
from hyperlane.cluster.pipelines.upkeep import Upkeep
from hyperlane.core import Address, HeadStatus, Plan


class Fleet:
    """`upkeeps`: one for each pipeline, in order. Everything but what says otherwise belongs to the event loop."""

    def __init__(
        self, crew: Crew, company: Company, local: LocalWorkers, arranging: Arranging, timeout_s: float
    ) -> None:
        """`timeout_s`: how long the first workers may take to answer."""
        self._crew = crew
        self._company = company
        self._arranging = arranging
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._upkeeps: tuple[Upkeep, ...] = ()
        self.revival = Revival(local, self._replaced)
        if company.standby is not None:
            company.standby.on_gone = self._changed_soon

    def of(self, upkeeps: Sequence[Upkeep]) -> None:
        """Say which pipelines there are, before `start`."""
        self._upkeeps = tuple(upkeeps)

    async def start(self) -> list[Pipeline]:
        """The first ring of each pipeline; after an error nothing is left at any worker.

        Raises:
            HyperlaneError: as `Crew.nodes`, `Arranging.now` and `Upkeep.start`.

        """
        await self._crew.settle(self._timeout_s)
        arrangement = await self._arranging.now(await self._crew.nodes(self._timeout_s))
        standby = self._company.standby
        if standby is not None and arrangement.spare is not None:
            standby.appoint(arrangement.spare)
        try:
            return await self._crew.together(
                upkeep.start(planned) for upkeep, planned in zip(self._upkeeps, arrangement.planned, strict=True)
            )
        except BaseException:
            await self.release()
            await self._crew.release()
            raise

    async def watch(self) -> None:
        """From now on see to it that each head has a pipeline; the first ones are attached."""
        for upkeep in self._upkeeps:
            await upkeep.watch()
        if self._company.standby is not None:
            await self._company.standby.tend()

    async def close(self) -> None:
        """Let things be as they are. Idempotent."""
        await self.revival.close()
        for upkeep in self._upkeeps:
            await upkeep.close()
        if self._company.standby is not None:
            await self._company.standby.stop()

    async def release(self) -> None:
        """Close the rings; what workers hold is the crew's. Idempotent."""
        for upkeep in self._upkeeps:
            await upkeep.release()

    # --- what happens ----------------------------------------------------------------------------------------

    def lost(self, number: int, cause: Exception) -> None:
        """The pipeline of this number failed. From any thread."""
        self._upkeeps[number].lost(cause)

    def offer(self, address: Address) -> None:
        """A worker came, or came back."""
        self._crew.offer(address)
        self._changed()

    def offer_soon(self, address: Address) -> None:
        """As `offer`, from any thread."""
        self._loop.call_soon_threadsafe(self.offer, address)

    def _changed(self) -> None:
        for upkeep in self._upkeeps:
            upkeep.changed()

    def _changed_soon(self) -> None:
        with suppress(RuntimeError):  # the loop has ended: so does the head
            self._loop.call_soon_threadsafe(self._changed)

    async def _replaced(self, old: Address, new: Address | None) -> None:
        await self._crew.forget(old)
        if new is not None:
            self.offer(new)

    # --- what it knows ---------------------------------------------------------------------------------------

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan of each pipeline, of the last ring that it had. From any thread."""
        return tuple(upkeep.plan for upkeep in self._upkeeps)

    def complete(self, status: HeadStatus) -> HeadStatus:
        """A status with who is left out for a while, and with the spare. From any thread."""
        standby = self._company.standby
        status = Blame(self._company.breakers, self._company.clock).complete(status)
        return status if standby is None else replace(status, spare=standby.status())
