"""Measures a cluster for one model: devices through their workers, paths, and the head. Implements `Measures`."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise

from hyperlane.cluster.planner.facts import HEAD, ClusterFacts, DeviceCost, HeadCost, PathFacts, SharedCores, pools_of
from hyperlane.cluster.profile.head_cost import measure_head
from hyperlane.cluster.profile.measured import Measured, Node, Route, dialled
from hyperlane.cluster.profile.pairs import End, machine_of
from hyperlane.cluster.profile.paths import PathBook
from hyperlane.cluster.profile.shape import DeviceProfile, ProfileShape
from hyperlane.cluster.report import Progress, Report
from hyperlane.core import HeadId, HeadStatus, LinkStatus, WorkerFacts
from hyperlane.stage.orders import LoadProgress

PROFILE_TIMEOUT_S = 600.0
"""A slow device may take minutes for layers of a large model; it says how far it is."""

CPU = "CPUExecutionProvider"
LEAST_FACTOR, LARGEST_FACTOR = 0.5, 4.0
"""Beyond these a factor of weights says that something else took memory meanwhile."""


_Kind = tuple[str | int, ...]


class ClusterProfiler:
    """Remembers paths and the head's cost; devices are remembered by their workers."""

    def __init__(self, head: HeadId, here: End, *, again: bool = False) -> None:
        """`here`: the head as an end of paths. `again`: each device is measured anew, once."""
        self._paths = PathBook(head, here)
        self._again = again
        self._measured: set[str] = set()
        self._doubted: set[str] = set()
        self._head_costs: dict[int, HeadCost] = {}
        self._links: tuple[LinkStatus, ...] = ()

    async def measure(self, nodes: Sequence[Node], shape: ProfileShape, report: Report) -> Measured:
        """See `Measures`."""
        profiles = await self._devices(nodes, shape, report)
        paths, routes = await self._paths.measure(nodes, report)
        workers = tuple(node.facts for node in nodes)
        facts = ClusterFacts(
            workers=workers,
            devices=tuple(_device(worker, profiles[worker.name], shape) for worker in workers),
            paths=paths,
            head=await self._head(shape, workers),
            pools=pools_of(workers),
            machines=shared_cores(workers),
        )
        self._links = links_of(paths, routes)
        return Measured(facts, routes)

    def forget(self, names: Collection[str]) -> None:
        """See `Measures`."""
        self._doubted |= set(names)
        self._paths.forget(names)

    async def routes(self, nodes: Sequence[Node], report: Report) -> tuple[Route, ...]:
        """See `Measures`."""
        paths, routes = await self._paths.measure(nodes, report)
        self._links = links_of(paths, routes)
        return routes

    def complete(self, status: HeadStatus) -> HeadStatus:
        """A status with what was measured last of the paths. From any thread."""
        rings = ((HEAD, *(stage.worker.name for stage in plan.stages), HEAD) for plan in status.plans)
        linked = {link for ring in rings for link in pairwise(ring)}
        links = (replace(link, in_plan=(link.source, link.target) in linked) for link in self._links)
        return replace(status, links=tuple(links))

    async def _devices(self, nodes: Sequence[Node], shape: ProfileShape, report: Report) -> dict[str, DeviceProfile]:
        """Machines at the same time, workers of one machine one after another, one of each kind."""
        machines: dict[str, list[Node]] = defaultdict(list)
        for node in nodes:
            machines[machine_of(node.facts)].append(node)

        async def one_by_one(workers: Sequence[Node]) -> dict[str, DeviceProfile]:
            profiles: dict[_Kind, DeviceProfile] = {}
            for node in workers:
                if _kind(node.facts) not in profiles:
                    profiles[_kind(node.facts)] = await self._device(node, shape, report)
                self._measured.add(node.facts.name)
                self._doubted.discard(node.facts.name)
            return {node.facts.name: profiles[_kind(node.facts)] for node in workers}

        tasks = [asyncio.ensure_future(one_by_one(workers)) for workers in machines.values()]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return {name: profile for machine in found for name, profile in machine.items()}

    async def _device(self, node: Node, shape: ProfileShape, report: Report) -> DeviceProfile:
        name = node.facts.name

        def tell(progress: LoadProgress) -> None:
            report(Progress(f"worker {name}", progress.phase, progress.done, progress.total))

        again = name in self._doubted or (self._again and name not in self._measured)
        return await node.client.profile(shape, tell, PROFILE_TIMEOUT_S, again=again)

    async def _head(self, shape: ProfileShape, workers: Sequence[WorkerFacts]) -> HeadCost:
        vocab = shape.model.vocab
        if vocab not in self._head_costs and workers:
            self._head_costs[vocab] = await asyncio.to_thread(measure_head, shape.model, workers[0])
        return self._head_costs.get(vocab, HeadCost())


def _kind(worker: WorkerFacts) -> _Kind:
    """What makes workers of one machine alike."""
    return (worker.device, worker.provider, worker.threads, worker.memory_pool, worker.runtime_version, worker.element)


def _device(worker: WorkerFacts, profile: DeviceProfile, shape: ProfileShape) -> DeviceCost:
    factor = profile.layer_bytes / shape.counted_bytes if profile.layer_bytes and shape.counted_bytes else 1.0
    return DeviceCost(
        worker=worker.name,
        layer_decode=profile.layer_decode,
        layer_prefill=profile.layer_prefill,
        embed=profile.embed,
        project=profile.project,
        step_s=profile.step_s,
        free_bytes=worker.memory_free,
        process_bytes=profile.process_bytes,
        weights_factor=min(LARGEST_FACTOR, max(LEAST_FACTOR, factor)),
    )


def links_of(paths: Sequence[PathFacts], routes: Sequence[Route]) -> tuple[LinkStatus, ...]:
    """The paths, each with where it is dialled: the head dials those to it as well."""
    found = []
    for path in paths:
        ends = (HEAD, path.source) if path.target == HEAD else (path.source, path.target)
        address = dialled(routes, *ends)
        if address is not None:
            times = (path.rtt_s * 1e6, path.bytes_per_s)
            found.append(LinkStatus(path.source, path.target, address, *times, same_machine=path.loopback))
    return tuple(found)


def shared_cores(workers: Sequence[WorkerFacts]) -> tuple[SharedCores, ...]:
    """The machines on whose cores several workers compute."""
    machines: dict[str, list[WorkerFacts]] = defaultdict(list)
    for worker in workers:
        if worker.provider == CPU and worker.cores:
            machines[machine_of(worker)].append(worker)
    return tuple(
        SharedCores(max(worker.cores for worker in members), tuple(worker.name for worker in members))
        for members in machines.values()
        if len(members) > 1
    )
