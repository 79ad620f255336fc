"""The head's knowledge of paths: measured on first need, kept for a while, measured again when old.

One task at a time; in the event loop of the workers' clients. Decides nothing: `pairs` says what is measured when.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from hyperlane.cluster.planner.facts import HEAD, PathFacts
from hyperlane.cluster.profile import pairs
from hyperlane.cluster.profile.measured import Node, Route
from hyperlane.cluster.profile.messages import PathOrder, PathResult
from hyperlane.cluster.profile.pairs import End, Pair
from hyperlane.cluster.report import Progress, Report
from hyperlane.core import Address, HeadId
from hyperlane.errors import HyperlaneError
from hyperlane.wire.probe import measure_path

log = logging.getLogger(__name__)

KEPT_S = 600.0
"""How long a path is believed; what fails is asked again sooner."""

FAILURE_KEPT_S = 60.0
TIMEOUT_S = 60.0

_Key = tuple[str, str, tuple[Address, ...]]


@dataclass(frozen=True, slots=True)
class _Found:
    """What became of a pair. `result` None: no address could be measured. `back`: bytes per second the other way."""

    at_s: float
    result: PathResult | None
    back: float = 0.0

    def is_young(self, now_s: float) -> bool:
        return now_s - self.at_s < (KEPT_S if self.result is not None else FAILURE_KEPT_S)


class PathBook:
    """Paths by pair of ends. `here`: the head."""

    def __init__(self, head: HeadId, here: End, clock: Callable[[], float] = time.monotonic) -> None:
        self._head = head
        self._here = here
        self._clock = clock
        self._known: dict[_Key, _Found] = {}

    async def measure(self, nodes: Sequence[Node], report: Report) -> tuple[tuple[PathFacts, ...], tuple[Route, ...]]:
        """Every path between these workers and the head that can be used, and where each is dialled.

        No machine takes part in two measurements at once. A pair that cannot be measured is left out, and said so.
        """
        by_name = {node.facts.name: node for node in nodes}
        ends = [pairs.worker_end(node.facts) for node in nodes]
        every = pairs.pairs_of(self._here, ends)
        missing = [pair for pair in every if not self._is_known(pair, by_name)]
        done = 0
        for together in pairs.rounds(_one_of_each_machine(missing, by_name)):
            report(Progress("head", "measuring paths", done, len(missing)))
            found = await asyncio.gather(*(self._measure(pair, by_name) for pair in together))
            for pair, one in zip(together, found, strict=True):
                self._keep(pair, one, missing, by_name)
            done += len(together)
        return self._facts(every, by_name), self._routes(every, by_name)

    def forget(self, names: Collection[str]) -> None:
        """Believe no path to or from these workers any more."""
        self._known = {key: found for key, found in self._known.items() if not {key[0], key[1]} & set(names)}

    def _is_known(self, pair: Pair, nodes: Mapping[str, Node]) -> bool:
        found = self._known.get(_key(pair, nodes))
        return found is not None and found.is_young(self._clock())

    def _keep(self, measured: Pair, found: _Found, missing: Sequence[Pair], nodes: Mapping[str, Node]) -> None:
        """What was measured, also for the pairs that it stands for."""
        for pair in missing:
            if pair == measured or _stands_for(measured, pair, nodes):
                address = _key(pair, nodes)[2][:1]
                result = found.result
                if result is not None and pair != measured:
                    result = PathResult(address[0], result.rtt_s, result.bytes_per_s)
                self._known[_key(pair, nodes)] = _Found(found.at_s, result, found.back)

    async def _measure(self, pair: Pair, nodes: Mapping[str, Node]) -> _Found:
        target, addresses = nodes[pair.target.name], _key(pair, nodes)[2]
        try:
            if pair.source.name == HEAD:
                results, backs = await asyncio.to_thread(self._from_here, target, addresses)
            else:
                order = PathOrder(self._head, addresses, target.client.node)
                results = await nodes[pair.source.name].client.measure_path(order, TIMEOUT_S) if addresses else ()
                backs = {}
        except HyperlaneError as error:
            results, backs = (PathResult(pair_address(addresses), failure=str(error)),), {}
        best = pairs.best(results)
        for one in results:
            if one.failure:
                log.info("from %s to %s at %s: %s", pair.source.name, pair.target.name, one.target, one.failure)
        if best is None:
            log.warning("no path from %s to %s could be measured", pair.source.name, pair.target.name)
        return _Found(self._clock(), best, backs.get(best.target, 0.0) if best is not None else 0.0)

    def _from_here(
        self, target: Node, addresses: Sequence[Address]
    ) -> tuple[tuple[PathResult, ...], dict[Address, float]]:
        results, backs = [], {}
        for address in addresses:
            try:
                cost = measure_path(address, self._head, target.client.link_tls(), both_ways=True)
            except HyperlaneError as error:
                results.append(PathResult(address, failure=str(error)))
                continue
            results.append(PathResult(address, cost.rtt_s, cost.out_bytes_per_s))
            backs[address] = cost.in_bytes_per_s
        return tuple(results), backs

    def _facts(self, every: Sequence[Pair], nodes: Mapping[str, Node]) -> tuple[PathFacts, ...]:
        facts = []
        for pair, result, back in self._found(every, nodes):
            source, target, local = pair.source.name, pair.target.name, pair.is_local
            facts.append(PathFacts(source, target, result.rtt_s, result.bytes_per_s, local))
            if source == HEAD:
                facts.append(PathFacts(target, HEAD, result.rtt_s, back, local))
        return tuple(facts)

    def _routes(self, every: Sequence[Pair], nodes: Mapping[str, Node]) -> tuple[Route, ...]:
        found = self._found(every, nodes)
        return tuple(Route(pair.source.name, pair.target.name, result.target) for pair, result, _ in found)

    def _found(self, every: Sequence[Pair], nodes: Mapping[str, Node]) -> list[tuple[Pair, PathResult, float]]:
        known = [(pair, self._known.get(_key(pair, nodes))) for pair in every]
        return [(pair, one.result, one.back) for pair, one in known if one is not None and one.result is not None]


def _key(pair: Pair, nodes: Mapping[str, Node]) -> _Key:
    return pair.source.name, pair.target.name, pairs.targets(nodes[pair.target.name].facts, local=pair.is_local)


def pair_address(addresses: Sequence[Address]) -> Address:
    """An address to name where nobody could be asked about any."""
    return addresses[0] if addresses else Address("?", 0)


def _one_of_each_machine(missing: Sequence[Pair], nodes: Mapping[str, Node]) -> list[Pair]:
    """Plain paths between workers of one machine are all alike: one of them is measured."""
    chosen: list[Pair] = []
    for pair in missing:
        if not any(_stands_for(one, pair, nodes) for one in chosen):
            chosen.append(pair)
    return chosen


def _stands_for(one: Pair, other: Pair, nodes: Mapping[str, Node]) -> bool:
    if HEAD in (one.source.name, other.source.name) or _place(one) != _place(other):
        return False
    names = {one.source.name, one.target.name, other.source.name, other.target.name}
    return one.is_local and other.is_local and all(nodes[name].client.node is None for name in names)


def _place(pair: Pair) -> tuple[str, str]:
    return pair.source.machine, pair.source.host
