"""A worker's stages, keyed by (head, epoch, index): who may load, what fits, what is dropped when.

Owns the lease and the memory account. Knows no gRPC and no socket; engines and links come through callables.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from hyperlane.core import Address, ElementType, Epoch, HeadId, StageSpec
from hyperlane.errors import ClusterError, DoesNotFit, HyperlaneError, LoadFailed, ProtocolError, WorkerBusy
from hyperlane.stage.engine import Engine
from hyperlane.stage.lease import LEASE_S, Lease
from hyperlane.stage.stage import Stage, StageHealth, StageState
from hyperlane.wire.frame import Role
from hyperlane.wire.link import Link

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StageKey:
    """What a stage is called on a worker."""

    epoch: Epoch
    index: int

    def __str__(self) -> str:
        return f"stage {self.index} of epoch {self.epoch.counter}"


@dataclass(frozen=True, slots=True)
class WeightSources:
    """Where a stage's weights come from: a file that this worker can open, else a tensor server."""

    path_hint: str = ""
    server: Address | None = None
    token: str = ""


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """A stage to load, with the bytes that the plan counted for it."""

    spec: StageSpec
    weights: WeightSources
    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int

    @property
    def key(self) -> StageKey:
        """What the stage will be called."""
        return StageKey(self.spec.epoch, self.spec.index)

    @property
    def needed_bytes(self) -> int:
        """All that the stage takes."""
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load has come. `done` of `total` in the phase's own unit; total 0: not known."""

    phase: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class HostHealth:
    """A worker's answer to a head's Health."""

    holds_lease: bool
    lease_s: float
    draining: bool
    memory_free: int
    stages: tuple[tuple[StageKey, StageHealth], ...]


LoadEngine = Callable[[LoadOrder, Callable[[LoadProgress], None]], Engine]
"""Builds a stage's engine; the progress callable may raise, and that must come through with nothing left behind."""

DialNext = Callable[[StageSpec, ElementType, Address], Link]
"""Opens the link from a stage to the data port of the next one, HELLO included. Raises LinkError."""


@dataclass(slots=True)
class _Loading:
    order: LoadOrder
    cancelled: str = ""


class StageHost:
    """The stages of one worker. Every method from any thread; `load`, `connect`, `unload` and `expire` may block."""

    def __init__(
        self,
        name: str,
        load_engine: LoadEngine,
        dial_next: DialNext,
        *,
        free_memory: Callable[[], int],
        memory_limit: int,
        lease_s: float = LEASE_S,
    ) -> None:
        """`free_memory` measures the device's free bytes now; all stages together never exceed `memory_limit`."""
        self._name = name
        self._load_engine = load_engine
        self._dial_next = dial_next
        self._measure_free = free_memory
        self._limit = memory_limit
        self._lease_s = lease_s
        self._guard = threading.Lock()
        self._lease: Lease | None = None
        self._draining = False
        self._loading: dict[StageKey, _Loading] = {}
        self._stages: dict[StageKey, tuple[LoadOrder, Stage]] = {}

    # --- loading ---------------------------------------------------------------------------------------------

    def load(self, order: LoadOrder, progress: Callable[[LoadProgress], None]) -> Stage:
        """Build a stage, taking the lease for its head; after an error nothing of it is left.

        Raises:
            WorkerBusy: another head holds the lease, or the worker is draining.
            DoesNotFit: the stage's bytes are not free beside what is loaded.
            LoadFailed: the engine could not be built, or the load was cancelled.
            HyperlaneError: whatever else names why (a malformed model, a transfer that failed, …).

        """
        self.expire()
        with self._guard:
            loading = self._admit(order)
        try:
            return self._build(loading, progress)
        finally:
            with self._guard:
                del self._loading[order.key]
                self._release_if_idle()

    def _admit(self, order: LoadOrder) -> _Loading:
        head = order.spec.epoch.head
        if self._lease is not None and self._lease.head != head:
            raise WorkerBusy(self._busy_text(self._lease))
        if self._draining:
            raise WorkerBusy(f"worker {self._name} is draining and takes no further stage")
        if order.key in self._loading or order.key in self._stages:
            raise LoadFailed(f"{order.key} is already on worker {self._name}")
        free = self._free()
        if order.needed_bytes > free:
            raise DoesNotFit(
                f"{order.key} needs {_mib(order.needed_bytes)} on worker {self._name} "
                f"(weights {_mib(order.weight_bytes)}, KV arena {_mib(order.kv_bytes)}, "
                f"workspace {_mib(order.workspace_bytes)}), but {_mib(free)} are free: "
                f"{_mib(order.needed_bytes - free)} are missing; use fewer slots, a shorter context or another worker"
            )
        now = time.monotonic()
        self._lease = self._lease.renewed(now) if self._lease else Lease(head, time.time(), now, self._lease_s)
        loading = self._loading[order.key] = _Loading(order)
        return loading

    def _build(self, loading: _Loading, progress: Callable[[LoadProgress], None]) -> Stage:
        order = loading.order

        def checked(report: LoadProgress) -> None:
            if loading.cancelled:
                raise LoadFailed(f"loading {order.key} on worker {self._name} was given up: {loading.cancelled}")
            progress(report)

        try:
            engine = self._load_engine(order, checked)
        except HyperlaneError:
            raise
        except Exception as error:  # the supervisor of a load: libraries fail in ways of their own
            log.exception("%s could not be loaded", order.key)
            text = f"{order.key} could not be loaded on worker {self._name}: {type(error).__name__}: {error}"
            raise LoadFailed(text) from error
        stage = Stage(order.spec, engine, self._name)
        with self._guard:
            cancelled = loading.cancelled
            if not cancelled:
                self._stages[order.key] = (order, stage)
        if cancelled:
            stage.close()
            raise LoadFailed(f"loading {order.key} on worker {self._name} was given up: {cancelled}")
        return stage

    # --- links -----------------------------------------------------------------------------------------------

    def stage(self, key: StageKey) -> Stage:
        """A loaded stage.

        Raises:
            ProtocolError: it is not here.

        """
        with self._guard:
            found = self._stages.get(key)
        if found is None:
            raise ProtocolError(f"{key} is not loaded on worker {self._name}")
        return found[1]

    def connect(self, key: StageKey, address: Address) -> None:
        """Dial the next stage and give the link to this one.

        Raises:
            ClusterError: the stage is not here.
            LinkError: the next stage cannot be reached, refuses the link, or the stage already has one.

        """
        try:
            stage = self.stage(key)
        except ProtocolError as error:
            raise ClusterError(str(error)) from error
        link = self._dial_next(stage.spec, stage.engine.element, address)
        try:
            stage.attach(Role.DOWNSTREAM, link)
        except ProtocolError:
            link.close()
            raise

    # --- lease and end ---------------------------------------------------------------------------------------

    def renew(self, head: HeadId) -> HostHealth:
        """A head's heartbeat: renews its lease, and tells it how its stages are."""
        with self._guard:
            mine = self._lease is not None and self._lease.head == head
            now = time.monotonic()
            if mine and self._lease is not None:
                self._lease = self._lease.renewed(now)
            stages = [(key, stage.health()) for key, (_, stage) in self._stages.items() if key.epoch.head == head]
            stages += [(key, StageHealth(StageState.LOADING, 0.0)) for key in self._loading if key.epoch.head == head]
            lease_s = self._lease.remaining_s(now) if self._lease else 0.0
            return HostHealth(mine, lease_s, self._draining, self._free(), tuple(stages))

    def expire(self) -> None:
        """Drop the stages of a head that was not heard of for the lease's length."""
        with self._guard:
            over = self._lease is not None and self._lease.remaining_s(time.monotonic()) == 0.0
            head = self._lease.head if over and self._lease is not None else None
        if head is not None:
            log.warning("the head that held this worker was not heard of for %g s: its stages go", self._lease_s)
            self.unload(head, why="its head was not heard of")

    def unload(self, head: HeadId, key: StageKey | None = None, why: str = "its head unloaded it") -> int:
        """Drop one stage, or all that a head holds here and its lease; returns how many. Idempotent."""
        with self._guard:
            chosen = [k for k in (*self._stages, *self._loading) if k.epoch.head == head and key in (None, k)]
            for loading in (self._loading[k] for k in chosen if k in self._loading):
                loading.cancelled = why
            dropped = [self._stages.pop(k)[1] for k in chosen if k in self._stages]
        for stage in dropped:
            stage.close()
        with self._guard:
            self._release_if_idle()
        return len(chosen)

    def cancel(self, key: StageKey, why: str) -> None:
        """Give up a load: its loader finds out at its next progress report. Does not block; idempotent."""
        with self._guard:
            if key in self._loading:
                self._loading[key].cancelled = why

    def drain(self) -> int:
        """Take no further stage; returns how many there are."""
        with self._guard:
            self._draining = True
            return len(self._stages)

    def close(self) -> None:
        """Drop everything. Idempotent."""
        self.drain()
        with self._guard:
            heads = {key.epoch.head for key in (*self._stages, *self._loading)}
        for head in heads:
            self.unload(head, why="its worker stops")

    def memory_free(self) -> int:
        """Bytes that another stage may take now."""
        with self._guard:
            return self._free()

    def _free(self) -> int:
        loading = sum(load.order.needed_bytes for load in self._loading.values())
        loaded = sum(order.needed_bytes for order, _ in self._stages.values())
        # Mapped weights do not show in what the system calls free, so what was promised is counted as well.
        return max(0, min(self._measure_free() - loading, self._limit - loading - loaded))

    def _release_if_idle(self) -> None:
        if not self._stages and not self._loading:
            self._lease = None

    def _busy_text(self, lease: Lease) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(lease.taken_at))
        left = lease.remaining_s(time.monotonic())
        return (
            f"worker {self._name} is held by head {lease.head.hex()[:8]} since {since}; stop that head, or use another "
            f"worker (the lease ends {left:.0f} s from now unless that head renews it)"
        )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
