"""What a head's workers hold for it: the stages that are loaded, plan or not, so that none is loaded twice. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from hyperlane.core import Address, StageSpec
from hyperlane.stage.orders import LoadOrder, StageKey
from hyperlane.stage.terms import same_engine, serves

Place = tuple[Address, StageKey]
"""A stage on a worker."""


class Holdings:
    """Loaded stages by worker (its control address), each with its owner: who loaded it, and may drop it."""

    def __init__(self) -> None:
        self._orders: dict[Address, dict[StageKey, LoadOrder]] = {}
        self._owners: dict[Place, str] = {}
        self._coming: set[Place] = set()
        self._silent: set[Address] = set()

    def loading(self, worker: Address, key: StageKey) -> None:
        """A worker is told to load a stage: it is known from now on. `loaded` or `not_loaded` follows."""
        self._coming.add((worker, key))

    def not_loaded(self, worker: Address, key: StageKey) -> None:
        """It came to nothing."""
        self._coming.discard((worker, key))

    def loaded(self, worker: Address, order: LoadOrder, owner: str = "") -> None:
        """A worker has a stage; it may have taken over the engine of another one, whoever loaded that."""
        held = self._orders.setdefault(worker, {})
        if order.held is not None:
            held.pop(order.held, None)
        held[order.key] = order
        self._coming.discard((worker, order.key))
        self._owners[worker, order.key] = owner

    def dropped(self, worker: Address, key: StageKey | None = None) -> None:
        """A worker has dropped a stage; all of them without a key."""
        if key is None:
            self._orders.pop(worker, None)
        else:
            self._orders.get(worker, {}).pop(key, None)

    def silent(self, worker: Address) -> None:
        """A worker does not answer: it is asked what it holds before any of that is used, or dropped."""
        self._silent.add(worker)

    def said(self, worker: Address, keys: Iterable[StageKey], asked: Collection[StageKey]) -> list[StageKey]:
        """What a worker says that it has: forget what it has not. Returns those that nobody here loaded.

        `asked`: what it was known to hold when it was asked; what came meanwhile is not in its answer.
        """
        self._silent.discard(worker)
        has, known = set(keys), self._orders.get(worker, {})
        gone = set(asked) - has
        self._orders[worker] = {key: order for key, order in known.items() if key not in gone}
        strays = (key for key in has - set(known) if (worker, key) not in self._coming)
        return sorted(strays, key=lambda key: (key.epoch, key.index))

    def serving(self, worker: Address, spec: StageSpec) -> StageKey | None:
        """The stage there whose engine serves a spec."""
        return next((key for key, order in self._orders.get(worker, {}).items() if serves(order.spec, spec)), None)

    def is_sure(self, worker: Address) -> bool:
        """Whether a worker holds anything, and has answered since."""
        return bool(self._orders.get(worker)) and worker not in self._silent

    def bytes_of(self, worker: Address) -> int:
        """What its stages were counted with."""
        return sum(order.needed_bytes for order in self._orders.get(worker, {}).values())

    def has_engine(self, worker: Address, spec: StageSpec) -> bool:
        """Whether a stage there has the engine of a spec, whatever its epoch."""
        return any(same_engine(order.spec, spec) for order in self._orders.get(worker, {}).values())

    def of(self, worker: Address) -> dict[StageKey, LoadOrder]:
        """What a worker holds."""
        return dict(self._orders.get(worker, {}))

    def besides(self, wanted: Collection[Place], owner: str = "", workers: Collection[Address] = ()) -> Sequence[Place]:
        """All that an owner holds, and all that anybody holds on some workers, but what is wanted; of who answers."""
        answering = [(worker, held) for worker, held in self._orders.items() if worker not in self._silent]
        places = [(worker, key) for worker, held in answering for key in held]
        mine = [place for place in places if self._owners.get(place, "") == owner or place[0] in workers]
        return [place for place in mine if place not in wanted]
