"""The head's side of the cluster: from worker addresses to a running ring, and back to nothing.

describe → plan → epoch → load → connect → ring → heartbeat. Knows no request and no token. Lives in one event loop.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from hyperlane.cluster.heartbeat import Heartbeat, OnLost, Watched
from hyperlane.cluster.identity import HeadIdentity
from hyperlane.cluster.planning import Outlook, Planned, Planning, distinct
from hyperlane.cluster.profile.measured import Node
from hyperlane.cluster.report import Progress, Report
from hyperlane.cluster.supply import WeightSupply
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.cluster.wanted import Wanted
from hyperlane.cluster.worker_client import Loaded, WorkerClient
from hyperlane.core import Address, Epoch, Plan, Precision, StageSpec
from hyperlane.errors import ClusterError, HyperlaneError, LoadFailed, WorkerUnreachable
from hyperlane.stage.orders import LinkPeers, LoadOrder, LoadProgress, StageKey, WeightSources
from hyperlane.stage.terms import hello_to
from hyperlane.wire.frame import Role
from hyperlane.wire.link import Ring
from hyperlane.wire.ring import TcpRing

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """What to run: `wanted` is what a plan is made for. `file`: the model's own."""

    wanted: Wanted
    file: Path
    step_tokens: int
    connect_timeout_s: float = 10.0
    load_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A plan whose stages are loaded and linked, and the head's two ends of its ring."""

    plan: Plan
    epoch: Epoch
    ring: Ring


class Controller:
    """Brings one pipeline up and takes it down. Not for two tasks at once."""

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
        self._heartbeat: Heartbeat | None = None
        self._ring: Ring | None = None

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
        workers = distinct([said.facts for said in described])
        return [Node(client, worker) for client, worker in zip(clients, workers, strict=True)]

    async def plan(self, ask: Ask, planning: Planning) -> Planned:
        """Plan now with what is there. Raises as `nodes` and `Planning.now`."""
        return await planning.now(ask.wanted, await self.nodes(ask.connect_timeout_s))

    async def outlook(self, ask: Ask, planning: Planning) -> Outlook:
        """What could be planned now. Raises as `nodes` and `Planning.outlook`."""
        return await planning.outlook(ask.wanted, await self.nodes(ask.connect_timeout_s))

    async def start(self, ask: Ask, planning: Planning, on_lost: OnLost) -> Pipeline:
        """Plan, load and link; after an error nothing is left at any worker.

        Raises:
            ClusterError: a worker cannot be reached, is busy, of another version, or failed; the model does not fit.
            ConfigError: the layers that were asked for are no placement on these workers.
            ModelError, TransferError: the weights cannot be used, or did not arrive.
            LinkError: the ring could not be closed.

        """
        planned = await self.plan(ask, planning)
        epoch = self._identity.next_epoch()
        try:
            loaded = await self._load(ask, planned.plan, epoch)
            return await self._link(ask, planned, epoch, loaded, on_lost)
        except BaseException:
            await self._unload()
            raise

    async def close(self) -> None:
        """Close the ring, drop every stage, release the leases and the connections. Idempotent."""
        await self._unload()
        for client in self._clients.values():
            await client.close()

    # --- up --------------------------------------------------------------------------------------------------

    async def _load(self, ask: Ask, plan: Plan, epoch: Epoch) -> list[Loaded]:
        clients = [self._clients[stage.worker.control] for stage in plan.stages]
        supply = WeightSupply(ask.file.resolve(), self._logs, self._trust.folder if self._trust else None)
        beating = Heartbeat(epoch.head, [Watched(client, None) for client in clients], self._lost_while_loading)
        try:
            return await self._together(
                self._load_stage(ask, supply, client, order)
                for client, order in zip(clients, self._orders(ask, plan, epoch, clients), strict=True)
            )
        finally:
            await beating.close()
            await supply.close()

    def _orders(self, ask: Ask, plan: Plan, epoch: Epoch, clients: Sequence[WorkerClient]) -> list[LoadOrder]:
        """What each worker is to load; where its weights come from is not known yet."""
        specs, peers = specs_of(plan, epoch, ask.step_tokens), link_peers(clients, self._trust)
        return [
            LoadOrder(spec, WeightSources(), stage.weight_bytes, stage.kv_bytes, stage.workspace_bytes, who)
            for spec, stage, who in zip(specs, plan.stages, peers, strict=True)
        ]

    async def _load_stage(self, ask: Ask, supply: WeightSupply, client: WorkerClient, order: LoadOrder) -> Loaded:
        # Asked with the patience of a load: a worker may have to hash its copy of the file first.
        asked = await client.describe(order.spec.model.fingerprint, str(supply.file), ask.load_timeout_s)
        encrypted = order.peers is not None
        weights = await supply.sources(client.address, holds_model=asked.holds_model, encrypted=encrypted)
        loaded = await client.load(replace(order, weights=weights), self._reporter(client), ask.load_timeout_s)
        self._report(Progress(client.name, f"layers {order.spec.layers} are ready", 1, 1))
        return loaded

    async def _link(
        self, ask: Ask, planned: Planned, epoch: Epoch, loaded: Sequence[Loaded], on_lost: OnLost
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
        self._heartbeat = Heartbeat(epoch.head, watched, on_lost)
        return Pipeline(plan, epoch, self._ring)

    def _reporter(self, client: WorkerClient) -> Callable[[LoadProgress], None]:
        def tell(progress: LoadProgress) -> None:
            self._report(Progress(client.name, progress.phase, progress.done, progress.total))

        return tell

    @staticmethod
    def _lost_while_loading(error: HyperlaneError) -> None:
        log.info("a worker did not answer while loading, its Load call will tell: %s", error)

    # --- down ------------------------------------------------------------------------------------------------

    async def _unload(self) -> None:
        if self._heartbeat is not None:
            await self._heartbeat.close()
        if self._ring is not None:
            self._ring.close()
        self._heartbeat = self._ring = None
        await asyncio.gather(*(self._release(client) for client in self._clients.values()))

    async def _release(self, client: WorkerClient) -> None:
        # A worker that cannot be told finds out when its lease runs out.
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


def specs_of(plan: Plan, epoch: Epoch, step_tokens: int) -> list[StageSpec]:
    """What each worker of a plan is to build."""
    return [
        StageSpec(
            model=plan.model,
            epoch=epoch,
            index=stage.index,
            stages=len(plan.stages),
            layers=stage.layers,
            slots=plan.slots,
            context=plan.context,
            threads=stage.worker.threads,
            max_step_tokens=step_tokens,
            precision_in=plan.precisions[stage.index],
            precision_out=plan.precisions[stage.index + 1],
        )
        for stage in plan.stages
    ]


def check_elements(plan: Plan, loaded: Sequence[Loaded]) -> None:
    """Raw links carry an engine's own type of values: both ends must have the same.

    Raises:
        ClusterError: two neighbours on a raw link have not.

    """
    for precision, (source, target) in zip(plan.precisions[1:], pairwise(loaded), strict=False):
        if precision is Precision.RAW and source.element is not target.element:
            raise ClusterError(
                f"a raw link needs one element type, but its ends' engines use {source.element} and {target.element}: "
                "choose --wire int8, or leave the workers of one type out"
            )


def link_peers(clients: Sequence[WorkerClient], trust: HeadTrust | None) -> list[LinkPeers | None]:
    """Who may open each stage's links, in the order of the stages; None for those that speak plain text.

    Raises:
        ClusterError: some speak plain text, and are dialled by others that do not.

    """
    plain = [client for client in clients if client.node is None]
    if trust is None or len(plain) == len(clients):
        return [None] * len(clients)
    if plain:
        raise ClusterError(
            f"{plain[0].name} at {plain[0].address} speaks plain text and cannot be linked with workers that encrypt: "
            "leave it out, or join it too, with `hyperlane worker --join TOKEN`"
        )
    nodes = [client.node for client in clients]
    return [LinkPeers(trust.node, before) for before in [None, *nodes[:-1]]]
