"""Loads the stages of a plan, or lets workers take them over from what they hold. Knows no ring."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from hyperlane.cluster.heartbeat import Heartbeat, Watched
from hyperlane.cluster.pipelines.crew import Crew
from hyperlane.cluster.pipelines.facts import Ask
from hyperlane.cluster.report import Progress, Report
from hyperlane.cluster.stage_orders import link_peers, specs_of
from hyperlane.cluster.supply import WeightSupply
from hyperlane.cluster.worker_client import Loaded, WorkerClient
from hyperlane.core import Address, Epoch, Plan, StagePlan, StageSpec
from hyperlane.errors import HyperlaneError
from hyperlane.stage.orders import LoadOrder, LoadProgress, WeightSources

log = logging.getLogger(__name__)

Order = tuple[Address, LoadOrder]
"""What a worker is to load."""


class StageLoader:
    """`owner`: on whose behalf stages are held. `blamed`: workers at which loads failed since it was cleared."""

    def __init__(self, crew: Crew, logs: Path, report: Report, owner: str = "") -> None:
        self.owner = owner
        self._crew = crew
        self._logs = logs
        self._report = report
        self.blamed: set[Address] = set()

    def orders(self, ask: Ask, plan: Plan, epoch: Epoch) -> list[Order]:
        """What each worker is to load, or to take over; where weights come from is not known yet.

        Raises:
            ClusterError: workers that encrypt cannot be linked with such that do not.

        """
        places = [stage.worker.control for stage in plan.stages]
        peers = link_peers([self._crew[place] for place in places], self._crew.trust)
        orders = []
        for where, spec, stage, who in zip(
            places, specs_of(plan, epoch, ask.step_tokens), plan.stages, peers, strict=True
        ):
            held = self._crew.holdings.serving(where, spec)
            order = LoadOrder(
                spec, WeightSources(), stage.weight_bytes, stage.kv_bytes, stage.workspace_bytes, who, held
            )
            orders.append((where, order))
        return orders

    def order(self, worker: Address, spec: StageSpec, stage: StagePlan) -> LoadOrder:
        """A stage to load that is linked with nobody yet."""
        (peers,) = link_peers([self._crew[worker]], self._crew.trust)
        return LoadOrder(spec, WeightSources(), stage.weight_bytes, stage.kv_bytes, stage.workspace_bytes, peers)

    async def load(self, ask: Ask, orders: Sequence[Order], workers: Collection[Address]) -> dict[int, Loaded]:
        """Load stages, all at once, by index. The leases of these workers are kept meanwhile.

        Raises:
            HyperlaneError: a worker failed; `blamed` has it.

        """
        if not orders:
            return {}
        supply = self._supply(ask, orders[0][1].spec.model.fingerprint)
        watched = [Watched(self._crew[address], None) for address in set(workers)]
        beating = Heartbeat(self._crew.head, watched, self._lost_while_loading)
        try:
            if any(order.held is None for _, order in orders):
                loading = {self._crew[where] for where, order in orders if order.held is None}
                await supply.look_around(loading, self._crew.answering(), ask.load_timeout_s)
            loaded = await self._crew.together(self._load_stage(ask, supply, where, order) for where, order in orders)
        finally:
            await beating.close()
            await supply.close()
        return {order.spec.index: one for (_, order), one in zip(orders, loaded, strict=True)}

    async def _load_stage(self, ask: Ask, supply: WeightSupply, where: Address, order: LoadOrder) -> Loaded:
        client, holdings = self._crew[where], self._crew.holdings
        holdings.loading(where, order.key)
        try:
            if order.held is None:
                weights = await supply.sources(client, order.spec, encrypted=order.peers is not None)
                order = replace(order, weights=weights)
            loaded = await client.load(order, self._reporter(client), ask.load_timeout_s)
        except BaseException as error:
            holdings.not_loaded(where, order.key)
            if isinstance(error, HyperlaneError):
                self.blamed.add(where)
            raise
        holdings.loaded(where, order, self.owner)
        self._report(Progress(client.name, f"layers {order.spec.layers} are ready", 1, 1))
        return loaded

    def _supply(self, ask: Ask, fingerprint: str) -> WeightSupply:
        trust = self._crew.trust.folder if self._crew.trust else None
        file = ask.file.resolve() if ask.file else None
        return WeightSupply(file, ask.places, fingerprint, self._logs, trust)

    def _reporter(self, client: WorkerClient) -> Callable[[LoadProgress], None]:
        def tell(progress: LoadProgress) -> None:
            done, total, rate = progress.done, progress.total, progress.rate
            self._report(Progress(client.name, progress.phase, done, total, rate, progress.sources))

        return tell

    @staticmethod
    def _lost_while_loading(error: HyperlaneError) -> None:
        log.info("a worker did not answer while loading, its Load call will tell: %s", error)
