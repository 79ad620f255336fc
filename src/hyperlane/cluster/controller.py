"""The head's side of the cluster: from worker addresses to a running ring, from one ring to the next, and to nothing.

describe → plan → epoch → load → connect → ring → heartbeat. What a worker holds already serves the next epoch as well.
Knows no request and no token, and not when to change. Lives in one event loop.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from hyperlane.cluster.heartbeat import Heartbeat, OnLeaving, OnLost, Watched
from hyperlane.cluster.holdings import Holdings, Place
from hyperlane.cluster.identity import HeadIdentity
from hyperlane.cluster.planning import Names, Outlook, Planned, Planning
from hyperlane.cluster.profile.measured import Node
from hyperlane.cluster.report import Progress, Report
from hyperlane.cluster.stage_orders import check_elements, link_peers, specs_of
from hyperlane.cluster.supply import WeightSupply
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.cluster.wanted import Wanted
from hyperlane.cluster.worker_client import Loaded, WorkerClient
from hyperlane.core import Address, Epoch, Plan
from hyperlane.errors import HyperlaneError, LoadFailed, WorkerBusy, WorkerUnreachable
from hyperlane.models.ranges import TensorPlaces
from hyperlane.stage.orders import LoadOrder, LoadProgress, StageKey, WeightSources
from hyperlane.stage.terms import hello_to
from hyperlane.wire.frame import Role
from hyperlane.wire.link import Ring
from hyperlane.wire.ring import TcpRing

log = logging.getLogger(__name__)

T = TypeVar("T")

PROBE_S = 1.5
PROBES = 2
"""Patience with a worker that may be gone: seconds and tries."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What to run: `wanted` is what a plan is made for.

    `file`: the model's own, None when it is not here; `places`: where its tensors lie.
    """

    wanted: Wanted
    file: Path | None
    places: TensorPlaces
    step_tokens: int
    connect_timeout_s: float = 10.0
    load_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A plan whose stages are loaded and linked, and the head's two ends of its ring."""

    planned: Planned
    epoch: Epoch
    ring: Ring

    @property
    def plan(self) -> Plan:
        """Which layers run where."""
        return self.planned.plan


@dataclass(frozen=True, slots=True)
class Present:
    """A worker that answers. Its `memory_free` is free now; `held_bytes`: what its stages of this head take."""

    node: Node
    held_bytes: int
    is_leaving: bool


@dataclass(frozen=True, slots=True)
class Attendance:
    """Who is there, in the order of the addresses, and why others cannot be used."""

    present: tuple[Present, ...]
    missing: tuple[tuple[Address, HyperlaneError], ...]


class Controller:
    """Brings pipelines up, one in place of another, and takes the last one down. Not for two tasks at once."""

    def __init__(
        self,
        addresses: Sequence[Address],
        identity: HeadIdentity,
        logs: Path,
        *,
        report: Report,
        why_lost: Callable[[], str] = str,
        trust: HeadTrust | None = None,
    ) -> None:
        """`why_lost` may know how local workers ended; it may block for a moment.

        `trust`: this head's cluster; without one its workers are those of this machine.
        """
        self._identity = identity
        self._logs = logs
        self._report = report
        self._why_lost = why_lost
        self._trust = trust
        self._clients = {address: WorkerClient(address, trust) for address in addresses}
        self._names = Names()
        self._holdings = Holdings()
        self._heartbeat: Heartbeat | None = None
        self._ring: Ring | None = None
        self.blamed: set[Address] = set()
        """Workers at which the last `change` failed."""

    def offer(self, address: Address) -> None:
        """A worker that the next plan may use. In the event loop; known ones change nothing."""
        if address not in self._clients:
            self._clients[address] = WorkerClient(address, self._trust)

    async def nodes(self, timeout_s: float) -> list[Node]:
        """All workers as they are now, in the order of their addresses; all are asked at once.

        Raises:
            WorkerUnreachable, VersionMismatch, NotTrusted: of the first worker that fails.

        """
        clients = list(self._clients.values())
        described = await self._together(client.describe(timeout_s=timeout_s) for client in clients)
        return [Node(client, self._names.given(said.facts)) for client, said in zip(clients, described, strict=True)]

    async def plan(self, ask: Ask, planning: Planning) -> Planned:
        """Plan now with what is there. Raises as `nodes` and `Planning.now`."""
        return await planning.now(ask.wanted, await self.nodes(ask.connect_timeout_s))

    async def outlook(self, ask: Ask, planning: Planning) -> Outlook:
        """What could be planned now. Raises as `nodes` and `Planning.outlook`."""
        return await planning.outlook(ask.wanted, await self.nodes(ask.connect_timeout_s))

    async def forget(self, address: Address) -> None:
        """A worker that will not come back."""
        self._holdings.dropped(address)
        client = self._clients.pop(address, None)
        if client is not None:
            await client.close()

    async def look(self) -> Attendance:
        """Ask all workers at once, with little patience, what they are and what they hold; renews their leases."""
        clients = list(self._clients.values())
        answers = await asyncio.gather(*(self._look_at(client) for client in clients), return_exceptions=True)
        missing: list[tuple[Address, HyperlaneError]] = []
        for client, answer in zip(clients, answers, strict=True):
            if isinstance(answer, HyperlaneError):
                self._holdings.dropped(client.address)
                missing.append((client.address, answer))
            elif isinstance(answer, BaseException):
                raise answer
        return Attendance(tuple(one for one in answers if isinstance(one, Present)), tuple(missing))

    async def start(
        self, ask: Ask, planning: Planning, on_lost: OnLost, on_leaving: OnLeaving | None = None
    ) -> Pipeline:
        """Plan, load and link; after an error nothing is left at any worker.

        Raises:
            ClusterError: a worker cannot be reached, is busy, of another version, or failed; the model does not fit.
            ConfigError: the layers that were asked for are no placement on these workers.
            ModelError, TransferError: the weights cannot be used, or did not arrive.
            LinkError: the ring could not be closed.

        """
        planned = await self.plan(ask, planning)
        try:
            return await self.change(ask, planned, on_lost, on_leaving)
        except BaseException:
            await self._unload()
            raise

    async def change(
        self,
        ask: Ask,
        planned: Planned,
        on_lost: OnLost,
        on_leaving: OnLeaving | None = None,
        let_go: Callable[[], Awaitable[None]] | None = None,
    ) -> Pipeline:
        """Bring a plan up in place of what runs: load what no worker holds, take over what does, link, drop the rest.

        `let_go` makes the head let go of the running ring; what is new is loaded beside that before. Without it nothing
        runs any more, and what the plan does not need is dropped first. After an error what was loaded stays, for the
        next try; if `let_go` was called nothing runs.

        Raises:
            HyperlaneError: as `start`; `blamed` has the workers at which it failed.

        """
        self.blamed.clear()
        plan = planned.plan
        epoch = self._identity.next_epoch()
        orders = self._orders(ask, plan, epoch)
        if let_go is None:
            await self._drop_ring()
            await self._drop_besides({(where, order.held) for where, order in orders if order.held is not None})
        loaded = await self._load(ask, [place for place in orders if place[1].held is None], plan)
        if let_go is not None:
            await let_go()
            await self._drop_ring()
        loaded |= await self._load(ask, [place for place in orders if place[1].held is not None], plan)
        in_order = [loaded[stage.index] for stage in plan.stages]
        pipeline = await self._link(ask, planned, epoch, in_order, (on_lost, on_leaving))
        await self._drop_besides({(where, order.key) for where, order in orders})
        return pipeline

    async def clear(self) -> None:
        """Close the ring and drop every stage; leases and connections stay."""
        await self._drop_ring()
        await self._drop_besides(())

    def runs(self, pipeline: Pipeline) -> bool:
        """Whether this pipeline is the one that was brought up last, and was not taken down."""
        return self._ring is pipeline.ring

    async def give_up_what_is_new(self, running: Pipeline) -> None:
        """After a `change` that failed before the head let go: drop all that the running plan does not need."""
        stages = running.plan.stages
        await self._drop_besides({(one.worker.control, StageKey(running.epoch, one.index)) for one in stages})

    async def close(self) -> None:
        """Close the ring, drop every stage, release the leases and the connections. Idempotent."""
        await self._unload()
        for client in self._clients.values():
            await client.close()

    # --- up --------------------------------------------------------------------------------------------------

    async def _look_at(self, client: WorkerClient) -> Present:
        described = await client.describe(timeout_s=PROBE_S, tries=PROBES)
        health = await client.health(self._identity.head, PROBE_S, PROBES)
        if not health.holds_lease and health.lease_s > 0:
            raise WorkerBusy(f"{client.name} at {client.address} is held by another head")
        for stray in self._holdings.said(client.address, (key for key, _ in health.stages)):
            await client.unload(self._identity.head, stray)
        node = Node(client, self._names.given(described.facts))
        return Present(node, self._holdings.bytes_of(client.address), health.draining)

    def _orders(self, ask: Ask, plan: Plan, epoch: Epoch) -> list[tuple[Address, LoadOrder]]:
        """What each worker is to load, or to take over; where weights come from is not known yet."""
        places = [stage.worker.control for stage in plan.stages]
        peers = link_peers([self._clients[place] for place in places], self._trust)
        orders = []
        for where, spec, stage, who in zip(
            places, specs_of(plan, epoch, ask.step_tokens), plan.stages, peers, strict=True
        ):
            held = self._holdings.serving(where, spec)
            order = LoadOrder(
                spec, WeightSources(), stage.weight_bytes, stage.kv_bytes, stage.workspace_bytes, who, held
            )
            orders.append((where, order))
        return orders

    async def _load(self, ask: Ask, orders: Sequence[tuple[Address, LoadOrder]], plan: Plan) -> dict[int, Loaded]:
        """Load stages, all at once, by index. The leases of the whole plan's workers are kept meanwhile."""
        if not orders:
            return {}
        supply = self._supply(ask, plan)
        everyone = {stage.worker.control: self._clients[stage.worker.control] for stage in plan.stages}
        watched = [Watched(client, None) for client in everyone.values()]
        beating = Heartbeat(self._identity.head, watched, self._lost_while_loading)
        try:
            if any(order.held is None for _, order in orders):
                loading = {self._clients[where] for where, order in orders if order.held is None}
                await supply.look_around(loading, self._clients.values(), ask.load_timeout_s)
            loaded = await self._together(self._load_stage(ask, supply, where, order) for where, order in orders)
        finally:
            await beating.close()
            await supply.close()
        return {order.spec.index: one for (_, order), one in zip(orders, loaded, strict=True)}

    async def _load_stage(self, ask: Ask, supply: WeightSupply, where: Address, order: LoadOrder) -> Loaded:
        client = self._clients[where]
        try:
            if order.held is None:
                weights = await supply.sources(client, order.spec, encrypted=order.peers is not None)
                order = replace(order, weights=weights)
            loaded = await client.load(order, self._reporter(client), ask.load_timeout_s)
        except HyperlaneError:
            self.blamed.add(where)
            raise
        self._holdings.loaded(where, order)
        self._report(Progress(client.name, f"layers {order.spec.layers} are ready", 1, 1))
        return loaded

    def _supply(self, ask: Ask, plan: Plan) -> WeightSupply:
        file, trust = ask.file.resolve() if ask.file else None, self._trust.folder if self._trust else None
        return WeightSupply(file, ask.places, plan.model.fingerprint, self._logs, trust)

    async def _link(
        self,
        ask: Ask,
        planned: Planned,
        epoch: Epoch,
        loaded: Sequence[Loaded],
        tell: tuple[OnLost, OnLeaving | None],
    ) -> Pipeline:
        plan = planned.plan
        check_elements(plan, loaded)
        keys = [StageKey(epoch, stage.index) for stage in plan.stages]
        clients = [self._clients[stage.worker.control] for stage in plan.stages]
        await self._together(
            client.connect(key, planned.data_port(stage.worker, following.worker), following_client.node)
            for client, key, (stage, following), following_client in zip(
                clients, keys, pairwise(plan.stages), clients[1:], strict=False
            )
        )
        specs = specs_of(plan, epoch, ask.step_tokens)
        self._ring = await asyncio.to_thread(
            functools.partial(TcpRing.connect, tls=(clients[0].link_tls(), clients[-1].link_tls())),
            planned.data_port(None, plan.stages[0].worker),
            hello_to(specs[0], Role.UPSTREAM, loaded[0].element),
            planned.data_port(None, plan.stages[-1].worker),
            hello_to(specs[-1], Role.DOWNSTREAM, loaded[-1].element),
            ask.connect_timeout_s,
        )
        watched = [Watched(client, key) for client, key in zip(clients, keys, strict=True)]
        self._heartbeat = Heartbeat(epoch.head, watched, *tell)
        return Pipeline(planned, epoch, self._ring)

    def _reporter(self, client: WorkerClient) -> Callable[[LoadProgress], None]:
        def tell(progress: LoadProgress) -> None:
            done, total, rate = progress.done, progress.total, progress.rate
            self._report(Progress(client.name, progress.phase, done, total, rate, progress.sources))

        return tell

    @staticmethod
    def _lost_while_loading(error: HyperlaneError) -> None:
        log.info("a worker did not answer while loading, its Load call will tell: %s", error)

    # --- down ------------------------------------------------------------------------------------------------

    async def _drop_ring(self) -> None:
        if self._heartbeat is not None:
            await self._heartbeat.close()
        if self._ring is not None:
            self._ring.close()
        self._heartbeat = self._ring = None

    async def _drop_besides(self, wanted: Collection[Place]) -> None:
        """Drop every stage that is held and not wanted."""
        await asyncio.gather(*(self._drop(*place) for place in self._holdings.besides(wanted)))

    async def _drop(self, where: Address, key: StageKey) -> None:
        self._holdings.dropped(where, key)
        if where in self._clients:
            # A worker that cannot be told is asked what it holds before it is used again.
            with suppress(HyperlaneError):
                await self._clients[where].unload(self._identity.head, key)

    async def _unload(self) -> None:
        await self._drop_ring()
        await asyncio.gather(*(self._release(client) for client in self._clients.values()))

    async def _release(self, client: WorkerClient) -> None:
        # A worker that cannot be told finds out when its lease runs out.
        self._holdings.dropped(client.address)
        with suppress(HyperlaneError):
            await client.unload(self._identity.head)

    # --- all at once -----------------------------------------------------------------------------------------

    async def _together(self, calls: Iterable[Coroutine[None, None, T]]) -> list[T]:
        """The results in order; the first error ends the other calls and is raised, with what is known besides."""
        tasks = [asyncio.ensure_future(call) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        except (WorkerUnreachable, LoadFailed) as error:
            reasons = await asyncio.to_thread(self._why_lost)
            raise type(error)("\n".join(filter(None, (str(error), reasons)))) from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
