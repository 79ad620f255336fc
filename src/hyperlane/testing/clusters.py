"""Clusters and workloads made of numbers, for tests and benchmarks of planning. No worker, no model file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from hyperlane.cluster.planner.curve import Curve
from hyperlane.cluster.planner.facts import (
    HEAD,
    ClusterFacts,
    DeviceCost,
    HeadCost,
    PathFacts,
    SharedCores,
    WireBytes,
    Workload,
    pools_of,
)
from hyperlane.core import Address, ElementType, ModelFacts, RopeFacts, StageCost, WorkerFacts

GIB = 1 << 30
MS = 1e-3


@dataclass(frozen=True, slots=True)
class Machine:
    """One worker of a made-up cluster.

    `layer_ms`: one layer for one token. `row_ms`: for each further row of a batch, and for each token of a chunk.
    `step_ms`, `embed_ms`, `project_ms`: of a step, of the first stage, of the last stage for one wanted position.
    `pool`: memory shared with other workers of that name. `machine`: `threads` share its `cores`.
    """

    layer_ms: float
    free: int = 64 * GIB
    row_ms: float | None = None
    step_ms: float = 0.0
    embed_ms: float = 0.0
    project_ms: float = 0.0
    pool: str = ""
    machine: str = ""
    threads: int = 1
    cores: int = 1
    element: ElementType = ElementType.F32

    def cost(self, name: str) -> DeviceCost:
        """Its measured costs."""
        row = (self.layer_ms / 4 if self.row_ms is None else self.row_ms) * MS
        first = self.layer_ms * MS
        return DeviceCost(
            worker=name,
            layer_decode=Curve(((1, first), (32, first + 31 * row))),
            layer_prefill=Curve(((1, first), (1024, first + 1023 * row))),
            embed=Curve.per_unit(self.embed_ms * MS),
            project=Curve.per_unit(self.project_ms * MS),
            step_s=self.step_ms * MS,
            free_bytes=self.free,
        )

    def facts(self, name: str, number: int) -> WorkerFacts:
        """What it would say of itself."""
        return WorkerFacts(
            name=name,
            control=Address("127.0.0.1", 7000 + 2 * number),
            data=Address("127.0.0.1", 7001 + 2 * number),
            device="made up",
            provider="none",
            threads=self.threads,
            memory_total=self.free,
            memory_free=self.free,
            element=self.element,
            hyperlane_version="0",
            protocol=1,
            runtime_version="none",
            memory_pool=self.pool,
        )


def made_up_cluster(
    machines: Sequence[Machine],
    *,
    rtt_ms: float | Sequence[Sequence[float]] = 0.0,
    mb_per_s: float = 1e6,
    head: HeadCost | None = None,
) -> ClusterFacts:
    """Workers `n0`, `n1`, … with a path between every two of them and the head.

    `rtt_ms`: the same everywhere, or a matrix with the head last.
    """
    names = [f"n{number}" for number in range(len(machines))]
    workers = [machine.facts(name, number) for number, (name, machine) in enumerate(zip(names, machines, strict=True))]
    ends = [*names, HEAD]
    paths = [
        PathFacts(ends[i], ends[j], (rtt_ms if isinstance(rtt_ms, float) else rtt_ms[i][j]) * MS, mb_per_s * 1e6)
        for i, j in permutations(range(len(ends)), 2)
    ]
    hosts = sorted({machine.machine for machine in machines if machine.machine})
    return ClusterFacts(
        workers=tuple(workers),
        devices=tuple(machine.cost(name) for name, machine in zip(names, machines, strict=True)),
        paths=tuple(paths),
        head=head or HeadCost(),
        pools=pools_of(workers),
        machines=tuple(_shared_cores(host, machines, names) for host in hosts),
    )


def _shared_cores(host: str, machines: Sequence[Machine], names: Sequence[str]) -> SharedCores:
    there = [(name, machine) for name, machine in zip(names, machines, strict=True) if machine.machine == host]
    return SharedCores(there[0][1].cores, tuple(name for name, _ in there))


def made_up_model(layers: int, hidden: int = 64) -> ModelFacts:
    """A model's facts; only its sizes mean anything."""
    return ModelFacts(
        name="made-up",
        family="llama",
        fingerprint="0" * 64,
        layers=layers,
        hidden=hidden,
        heads=4,
        kv_heads=2,
        head_dim=hidden // 4,
        ffn=4 * hidden,
        vocab=1000,
        context=4096,
        rms_eps=1e-5,
        rope=RopeFacts(1e4, hidden // 4),
        tied_output=False,
    )


def made_up_workload(
    layers: int | Sequence[int],
    *,
    hidden: int = 64,
    kv: int = 0,
    workspace: int = 0,
    embedding: int = 0,
    output: int = 0,
    streams: int = 4,
    prompt_tokens: int = 256,
    chunk_tokens: int = 64,
    frames_in_flight: int | None = None,
    min_group_rows: int = 1,
) -> Workload:
    """A workload over layers of the given bytes (a number: so many layers of 1 GiB)."""
    weights = (GIB,) * layers if isinstance(layers, int) else tuple(layers)
    return Workload(
        model=made_up_model(len(weights), hidden),
        cost=StageCost(weights, embedding, output, kv, workspace),
        wire=WireBytes(int8=hidden + 8, int4=hidden // 2 + 8),
        context=1024,
        slots=8,
        prompt_tokens=prompt_tokens,
        streams=streams,
        chunk_tokens=chunk_tokens,
        frames_in_flight=frames_in_flight,
        min_group_rows=min_group_rows,
    )
