"""Who is blamed for a loss, and left out for a while when it happens too often. Asks nobody."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from hyperlane.cluster.pipelines.breaker import Breakers
from hyperlane.cluster.pipelines.facts import Attendance
from hyperlane.core import Address, HeadStatus, Plan
from hyperlane.errors import EngineFault

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Blame:
    """Tells the breakers. `clock`: seconds."""

    breakers: Breakers
    clock: Callable[[], float]

    def for_loss(self, plan: Plan, seen: Attendance, cause: Exception) -> bool:
        """Those of the plan that do not answer; if all do, the one whose stage said FAULT. Whether there is one."""
        places = [stage.worker.control for stage in plan.stages]
        gone = {address for address, _ in seen.missing if address in places}
        if not gone and isinstance(cause, EngineFault) and cause.stage is not None and cause.stage < len(places):
            gone = {places[cause.stage]}
        self.failed(gone, cause)
        return bool(gone)

    def failed(self, workers: Collection[Address], cause: Exception) -> None:
        """Each of them failed once more."""
        for address in workers:
            log.warning("the worker at %s failed: %s", address, cause)
            if self.breakers.failed(address, self.clock()):
                log.warning("the worker at %s is left out: %s", address, self.breakers.reason(address, self.clock()))

    def complete(self, status: HeadStatus) -> HeadStatus:
        """A status with who is left out for a while, and why. From any thread."""
        now_s = self.clock()
        reasons = [self.breakers.reason(node.address, now_s) if node.address else "" for node in status.nodes]
        nodes = (replace(node, reason=why or node.reason) for node, why in zip(status.nodes, reasons, strict=True))
        return replace(status, nodes=tuple(nodes))
