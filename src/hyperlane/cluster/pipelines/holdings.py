"""What a head's workers hold for it: the stages that are loaded, plan or not, so that none is loaded twice. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from hyperlane.core import Address, StageSpec
from hyperlane.stage.orders import LoadOrder, StageKey
from hyperlane.stage.terms import serves

Place = tuple[Address, StageKey]
"""A stage on a worker."""


class Holdings:
    """Loaded stages by worker (its control address)."""

    def __init__(self) -> None:
        self._orders: dict[Address, dict[StageKey, LoadOrder]] = {}

    def loaded(self, worker: Address, order: LoadOrder) -> None:
        """A worker has a stage; it may have taken over the engine of another one."""
        held = self._orders.setdefault(worker, {})
        if order.held is not None:
            held.pop(order.held, None)
        held[order.key] = order

    def dropped(self, worker: Address, key: StageKey | None = None) -> None:
        """A worker has dropped a stage; all of them without a key."""
        if key is None:
            self._orders.pop(worker, None)
        else:
            self._orders.get(worker, {}).pop(key, None)

    def said(self, worker: Address, keys: Iterable[StageKey]) -> list[StageKey]:
        """What a worker says that it has: forget what it has not. Returns those that nobody here loaded."""
        has, known = set(keys), self._orders.get(worker, {})
        self._orders[worker] = {key: order for key, order in known.items() if key in has}
        return sorted(has - set(known), key=lambda key: (key.epoch, key.index))

    def serving(self, worker: Address, spec: StageSpec) -> StageKey | None:
        """The stage there whose engine serves a spec."""
        return next((key for key, order in self._orders.get(worker, {}).items() if serves(order.spec, spec)), None)

    def bytes_of(self, worker: Address) -> int:
        """What its stages were counted with."""
        return sum(order.needed_bytes for order in self._orders.get(worker, {}).values())

    def besides(self, wanted: Collection[Place]) -> Sequence[Place]:
        """All that is held and not wanted."""
        places = [(worker, key) for worker, held in self._orders.items() for key in held]
        return [place for place in places if place not in wanted]
