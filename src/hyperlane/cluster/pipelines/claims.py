"""Which pipeline uses which worker, so that no two plan with the same. No I/O."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hyperlane.core import Address, Plan


@dataclass(frozen=True, slots=True)
class _Claim:
    plans: tuple[Plan, ...]
    is_down: bool = False

    def has(self, worker: Address) -> bool:
        return any(stage.worker.control == worker for plan in self.plans for stage in plan.stages)


@dataclass(slots=True)
class Claims:
    """A worker belongs to the pipeline whose plan has it; one that is in no plan may be taken by any.

    `planning`: held while a plan is made and claimed.
    """

    planning: asyncio.Lock = field(default_factory=asyncio.Lock)
    _claims: dict[str, _Claim] = field(default_factory=dict)

    def take(self, owner: str, *plans: Plan) -> None:
        """An owner's pipeline has the workers of these plans; the last one is what it runs, or is about to."""
        self._claims[owner] = _Claim(plans)

    def down(self, owner: str) -> None:
        """No plan fits for an owner now: others that are in need may use its workers."""
        if owner in self._claims:
            self._claims[owner] = _Claim(self._claims[owner].plans, is_down=True)

    @property
    def is_any_down(self) -> bool:
        """Whether some pipeline waits for workers."""
        return any(claim.is_down for claim in self._claims.values())

    def plans(self) -> tuple[Plan, ...]:
        """The plans of the pipelines that are up, or about to be."""
        return tuple(claim.plans[-1] for claim in self._claims.values() if not claim.is_down)

    def is_used(self, worker: Address) -> bool:
        """Whether a pipeline that is up has the worker."""
        return any(claim.has(worker) for claim in self._claims.values() if not claim.is_down)

    def is_own(self, owner: str, worker: Address) -> bool:
        """Whether an owner's plan has the worker."""
        return owner in self._claims and self._claims[owner].has(worker)

    def is_open_to(self, owner: str, worker: Address, *, in_need: bool) -> bool:
        """Whether an owner may plan with a worker: nobody else has it, or, for one `in_need`, nobody who is up."""
        others = (claim for other, claim in self._claims.items() if other != owner)
        return not any(claim.has(worker) and not (in_need and claim.is_down) for claim in others)
