"""What the pipelines of a head share: who has which worker, who is trusted, who is the spare."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hyperlane.cluster.pipelines.breaker import Breakers
from hyperlane.cluster.pipelines.claims import Claims
from hyperlane.cluster.pipelines.mending import Ready
from hyperlane.cluster.profile.measured import Node
from hyperlane.core import Address, Plan, SpareStatus, WorkerFacts


class Spare(Protocol):
    """What the pipelines ask of the spare, as `standby.Standby` is one."""

    worker: Address | None
    on_gone: Callable[[], None]

    def appoint(self, facts: WorkerFacts) -> None:
        """This worker is the spare from now on."""
        ...

    def choose(self, workers: Sequence[WorkerFacts]) -> None:
        """Appoint one of these, if there is no spare and one of them can be."""
        ...

    def ready(self, plan: Plan) -> Ready:
        """The stages of a plan that it holds."""
        ...

    async def tend(self) -> None:
        """Begin to load what it should hold."""
        ...

    async def stop(self) -> None:
        """Load nothing; what is there stays. Idempotent."""
        ...

    def status(self) -> SpareStatus:
        """What is to be said of it. From any thread."""
        ...


@dataclass(slots=True)
class Company:
    """`standby` None: no spare is wanted. `clock`: seconds."""

    claims: Claims
    breakers: Breakers
    standby: Spare | None = None
    clock: Callable[[], float] = time.monotonic

    def failures(self, worker: Address) -> int:
        """How often a worker failed of late."""
        return self.breakers.failures(worker, self.clock())

    def trusted(self, nodes: Sequence[Node]) -> list[Node]:
        """Those that requests may depend on."""
        now_s = self.clock()
        return [node for node in nodes if self.breakers.is_trusted(node.facts.control, now_s)]

    def used(self, nodes: Sequence[Node]) -> list[Node]:
        """Those that are neither left out nor spare."""
        now_s, spare = self.clock(), self.standby.worker if self.standby is not None else None
        tried = [node for node in nodes if not self.breakers.is_open(node.facts.control, now_s)]
        return [node for node in tried if node.facts.control != spare]

    def ready(self, plan: Plan) -> Ready:
        """Where stages of a plan are held ready besides."""
        return self.standby.ready(plan) if self.standby is not None else ()
