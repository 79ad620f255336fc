"""A worker's stages, keyed by (head, epoch, index): who may load, what fits, what is dropped when.

Owns the lease and the memory account. Knows no gRPC and no socket; engines and links come through callables.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hyperlane.core import Address, HeadId, NodeId
from hyperlane.errors import DoesNotFit, HyperlaneError, LoadFailed, NotTrusted, ProtocolError, WorkerBusy
from hyperlane.stage.engine import Engine
from hyperlane.stage.failures import let_go
from hyperlane.stage.lease import LEASE_S, Lease
from hyperlane.stage.orders import HostHealth, LinkPeers, LoadOrder, LoadProgress, StageKey
from hyperlane.stage.stage import Stage, StageHealth, StageState
from hyperlane.stage.terms import agree, hello_to, hello_to_next, serves
from hyperlane.wire.frame import Hello, Role
from hyperlane.wire.limits import Limits
from hyperlane.wire.link import Link
from hyperlane.wire.listener import Refusal
from hyperlane.wire.peer import NodeRole, Peer

log = logging.getLogger(__name__)


LoadEngine = Callable[[LoadOrder, Callable[[LoadProgress], None]], Engine]
"""Builds a stage's engine; the progress callable may raise, and that must come through with nothing left behind."""

Dial = Callable[[Address, Hello], Link]
"""Opens a link to a data port. Raises LinkError, WorkerUnreachable or VersionMismatch."""


@dataclass(slots=True)
class _Loading:
    """A load under way. `held`: the stage of an earlier epoch whose engine it takes over."""

    order: LoadOrder
    held: Stage | None = None
    cancelled: str = ""


class StageHost:
    """The stages of one worker. Every method from any thread; `load`, `connect`, `unload` and `expire` may block."""

    def __init__(
        self,
        name: str,
        load_engine: LoadEngine,
        dial: Dial,
        *,
        free_memory: Callable[[], int],
        memory_limit: int,
        lease_s: float = LEASE_S,
    ) -> None:
        """`free_memory` measures the device's free bytes now; all stages together never exceed `memory_limit`."""
        self.name = name
        self._load_engine = load_engine
        self._dial = dial
        self._measure_free = free_memory
        self._limit = memory_limit
        self._lease_s = lease_s
        self._guard = threading.Lock()
        self._lease: Lease | None = None
        self._draining = False
        self._measured = False
        self._loading: dict[StageKey, _Loading] = {}
        self._stages: dict[StageKey, tuple[LoadOrder, Stage]] = {}

    # --- loading ---------------------------------------------------------------------------------------------

    def load(self, order: LoadOrder, progress: Callable[[LoadProgress], None]) -> Stage:
        """Build a stage, taking the lease for its head; after an error nothing of it is left.

        Where the order names a stage of an earlier epoch that is here and the same, that one gives its engine, and its
        links are dropped.

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
            raise WorkerBusy(f"worker {self.name} is draining and takes no further stage")
        if self._measured:
            raise WorkerBusy(f"worker {self.name} is being measured: try again in a few seconds")
        if order.key in self._loading or order.key in self._stages:
            raise LoadFailed(f"{order.key} is already on worker {self.name}")
        held = self._held(order)
        if held is None and order.held is not None:
            # Its head counts on the KV entries as well.
            raise LoadFailed(f"{order.held}, which {order.key} should take over, is not on worker {self.name}")
        free = self._free()
        if held is None and order.needed_bytes > free:
            raise DoesNotFit(
                f"{order.key} needs {_needs(order)} on worker {self.name}, but {_mib(free)} are free: "
                f"{_mib(order.needed_bytes - free)} are missing; use fewer slots, a shorter context or another worker"
            )
        now = time.monotonic()
        self._lease = self._lease.renewed(now) if self._lease else Lease(head, time.time(), now, self._lease_s)
        stage = self._stages.pop(held)[1] if held is not None else None
        loading = self._loading[order.key] = _Loading(order, stage)
        return loading

    def _held(self, order: LoadOrder) -> StageKey | None:
        """The stage that gives its engine to this one."""
        found = self._stages.get(order.held) if order.held is not None else None
        return order.held if found is not None and serves(found[0].spec, order.spec) else None

    def _build(self, loading: _Loading, progress: Callable[[LoadProgress], None]) -> Stage:
        order = loading.order

        def checked(report: LoadProgress) -> None:
            if loading.cancelled:
                raise LoadFailed(f"loading {order.key} on worker {self.name} was given up: {loading.cancelled}")
            progress(report)

        try:
            engine = loading.held.hand_over() if loading.held else self._load_engine(order, checked)
        except HyperlaneError as error:
            let_go(error)
            raise
        except Exception as error:  # the supervisor of a load: libraries fail in ways of their own
            let_go(error)
            log.exception("%s could not be loaded", order.key)
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
                raise LoadFailed(self._starved_text(order, error)) from error
            text = f"{order.key} could not be loaded on worker {self.name}: {type(error).__name__}: {error}"
            raise LoadFailed(text) from error
        stage = Stage(order.spec, engine, self.name)
        with self._guard:
            cancelled = loading.cancelled
            if not cancelled:
                self._stages[order.key] = (order, stage)
        if cancelled:
            stage.close()
            raise LoadFailed(f"loading {order.key} on worker {self.name} was given up: {cancelled}")
        return stage

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Keep the device free of stages while the block measures it.

        Raises:
            WorkerBusy: there are stages, or somebody measures it already.

        """
        with self._guard:
            if self._stages or self._loading or self._measured:
                what = "is being measured already" if self._measured else "runs stages and cannot be measured"
                raise WorkerBusy(f"worker {self.name} {what}: try again when that is over")
            self._measured = True
        try:
            yield
        finally:
            with self._guard:
                self._measured = False

    # --- links -----------------------------------------------------------------------------------------------

    def admit(self, hello: Hello, peer: Peer | None = None) -> Limits | Refusal:
        """Whether somebody may open this link to one of the stages; its place is then kept for `deliver`.

        `peer`: whom the certificate names; None on a plain connection, which comes from this machine.
        """
        key = StageKey(hello.epoch, hello.stage)
        try:
            order, stage = self._loaded(key)
            _check_peer(order, hello, peer)
            limits = agree(hello_to(stage.spec, hello.role, stage.engine.element), hello)
            stage.reserve(hello.role)
        except HyperlaneError as error:
            return Refusal(str(error))
        return limits

    def deliver(self, hello: Hello, link: Link) -> None:
        """Give an admitted link to its stage; it is closed if the stage went away meanwhile."""
        try:
            self._stage(StageKey(hello.epoch, hello.stage)).attach(hello.role, link)
        except HyperlaneError as error:
            log.info("a link came too late: %s", error)
            link.close()

    def connect(self, key: StageKey, address: Address, dial: Dial | None = None) -> None:
        """Dial the next stage and give the link to this one. `dial`: how, if not as this host usually does.

        Raises:
            LinkError: the next stage refuses the link, or this one already has it.
            ClusterError: the next stage cannot be reached, or this one is not loaded.

        """
        stage = self._stage(key)
        stage.reserve(Role.DOWNSTREAM)
        try:
            link = (dial or self._dial)(address, hello_to_next(stage.spec, stage.engine.element))
        except HyperlaneError:
            stage.give_back(Role.DOWNSTREAM)
            raise
        try:
            stage.attach(Role.DOWNSTREAM, link)
        except ProtocolError:
            link.close()
            raise

    def _stage(self, key: StageKey) -> Stage:
        return self._loaded(key)[1]

    def _loaded(self, key: StageKey) -> tuple[LoadOrder, Stage]:
        with self._guard:
            found = self._stages.get(key)
        if found is None:
            raise LoadFailed(f"{key} is not loaded on worker {self.name}")
        return found

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

    def _starved_text(self, order: LoadOrder, error: Exception) -> str:
        with self._guard:
            free = max(0, self._measure_free())
        return (
            f"{order.key} could not be loaded on worker {self.name}: its system gave no more memory. It counted with "
            f"{_needs(order)}, and {_mib(free)} should be free; raise what limits that process (ulimit, a container), "
            f"tell it what it may use (--memory), or use fewer slots, a shorter context or another worker. {error}"
        ).strip()

    def _busy_text(self, lease: Lease) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(lease.taken_at))
        left = lease.remaining_s(time.monotonic())
        return (
            f"worker {self.name} is held by head {lease.head.hex()[:8]} since {since}; stop that head, or use another "
            f"worker (the lease ends {left:.0f} s from now unless that head renews it)"
        )


def _needs(order: LoadOrder) -> str:
    return (
        f"{_mib(order.needed_bytes)} (weights {_mib(order.weight_bytes)}, KV arena {_mib(order.kv_bytes)}, "
        f"workspace {_mib(order.workspace_bytes)})"
    )


def _check_peer(order: LoadOrder, hello: Hello, peer: Peer | None) -> None:
    """Hold a dialler's certificate against the plan.

    Raises:
        NotTrusted: the plan names another node for this link.

    """
    if order.peers is None and peer is None:
        return
    allowed = _who_dials(order, hello.role)
    if peer is None or (peer.name.role, peer.name.node) != allowed:
        raise NotTrusted(
            f"{peer or 'who shows no certificate'} may not open the {hello.role.name.lower()} link of {order.key}"
        )


def _who_dials(order: LoadOrder, role: Role) -> tuple[NodeRole, NodeId] | None:
    """The head dials both ends of the ring, each stage the next one."""
    peers: LinkPeers | None = order.peers
    if peers is None:
        return None
    if role is Role.UPSTREAM and not order.spec.is_first:
        return (NodeRole.WORKER, peers.before) if peers.before is not None else None
    if role is Role.DOWNSTREAM and not order.spec.is_last:
        return None
    return NodeRole.HEAD, peers.head


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
