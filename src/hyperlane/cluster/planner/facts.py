"""What a plan is made from: measured costs of devices and paths, and what they are wanted for. Plain frozen data.

Knows not how anything was measured. Seconds and bytes throughout.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from hyperlane.cluster.planner.curve import Curve
from hyperlane.core import PROMPT_CHUNK, ModelFacts, Precision, StageCost, WorkerFacts

HEAD = "head"
"""The head's name among the ends of paths. No worker may have it."""


class Objective(enum.StrEnum):
    """What a plan is best at."""

    LATENCY = "latency"
    """Time per token of one stream."""
    THROUGHPUT = "throughput"
    """Tokens per second of many streams together."""


@dataclass(frozen=True, slots=True)
class DeviceCost:
    """What steps cost on one worker's device, measured with the model's shape and the worker's threads.

    `layer_decode`: one layer, by the one-token rows of a step. `layer_prefill`: one layer, by the tokens of a chunk.
    `embed`: embedding, by tokens. `project`: final norm, output projection and candidates, by wanted positions.
    `step_s`: what a step takes besides, whatever it holds: from a frame's arrival to its departure.
    `free_bytes`: free for stages while the worker runs without a model; `process_bytes`: what it takes in that state.
    `weights_factor`: bytes that weights take on this device for each byte that `StageCost` counts.
    """

    worker: str
    layer_decode: Curve
    layer_prefill: Curve
    embed: Curve
    project: Curve
    step_s: float
    free_bytes: int
    process_bytes: int = 0
    weights_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class PathFacts:
    """The way that frames take from one node to another: `rtt_s` there and back for a small frame, one-way bandwidth.

    `source`, `target`: names of workers, or `HEAD`. `loopback`: both are on one machine.
    """

    source: str
    target: str
    rtt_s: float
    bytes_per_s: float
    loopback: bool = False


@dataclass(frozen=True, slots=True)
class HeadCost:
    """The head's own time: for each frame, for each token before the next frame may leave, and after it has left."""

    step_s: float = 0.0
    token_s: float = 0.0
    publish_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MemoryPool:
    """Workers that take their memory from one another: together they have `free_bytes`."""

    free_bytes: int
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SharedCores:
    """Workers that compute on the cores of one machine. Their threads slow one another when they are more."""

    cores: int
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """Everything measured. `devices` and `workers` are in the same order; a pair without a path cannot be neighbours.

    Raises:
        ValueError: a name is there twice or missing, or a path has no bandwidth.

    """

    workers: tuple[WorkerFacts, ...]
    devices: tuple[DeviceCost, ...]
    paths: tuple[PathFacts, ...]
    head: HeadCost = field(default_factory=HeadCost)
    pools: tuple[MemoryPool, ...] = ()
    machines: tuple[SharedCores, ...] = ()

    def __post_init__(self) -> None:
        names = self.names
        if len({HEAD, *names}) <= len(names):
            raise ValueError(f"workers need different names, none of them '{HEAD}': {', '.join(names)}")
        if tuple(device.worker for device in self.devices) != names:
            raise ValueError(f"the costs are not those of the workers {', '.join(names)}, in this order")
        for path in self.paths:
            if path.rtt_s < 0 or path.bytes_per_s <= 0:
                raise ValueError(f"the path from {path.source} to {path.target} has no bandwidth or a negative delay")
        sharing = [pool.workers for pool in self.pools] + [machine.workers for machine in self.machines]
        for name in (name for group in sharing for name in group):
            if name not in names:
                raise ValueError(f"'{name}' shares memory or cores, but is no worker")

    @property
    def names(self) -> tuple[str, ...]:
        """The workers' names, in order."""
        return tuple(worker.name for worker in self.workers)

    def refreshed(self, workers: Sequence[WorkerFacts]) -> Self:
        """The same costs for these workers, in this order, with the memory that they say is free now."""
        devices = {device.worker: device for device in self.devices}
        now = self.only([worker.name for worker in workers])
        return replace(
            now,
            workers=tuple(workers),
            devices=tuple(replace(devices[worker.name], free_bytes=worker.memory_free) for worker in workers),
            pools=pools_of(workers),
        )

    def only(self, names: Sequence[str]) -> Self:
        """The same facts for some of the workers."""
        kept = {HEAD, *names}
        return type(self)(
            workers=tuple(worker for worker in self.workers if worker.name in kept),
            devices=tuple(device for device in self.devices if device.worker in kept),
            paths=tuple(path for path in self.paths if {path.source, path.target} <= kept),
            head=self.head,
            pools=tuple(MemoryPool(pool.free_bytes, _within(pool.workers, kept)) for pool in self.pools),
            machines=tuple(SharedCores(machine.cores, _within(machine.workers, kept)) for machine in self.machines),
        )


@dataclass(frozen=True, slots=True)
class WireBytes:
    """Bytes on the wire, as `docs/wire-format.md` counts them.

    `int8`, `int4`: one token's hidden state at that precision (at `raw` it is the engine's own type). `row`: of each
    row on every link; `token`: a token's id; `candidates`: of an answered row; `frame`: header and timing records.
    """

    int8: int
    int4: int
    row: int = 28
    token: int = 4
    candidates: int = 520
    frame: int = 96

    def hidden(self, precision: Precision, raw: int) -> int:
        """Bytes of one token's hidden state, which has `raw` bytes unpacked."""
        return {Precision.INT8: self.int8, Precision.INT4: self.int4}.get(precision, raw)


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be run, and what speeds are predicted for.

    `cost`: counted for `slots` × `context` (tokens a slot). `prompt_tokens`: of the prompt whose first token is timed;
    `answer_tokens`: after it. `streams`: how many sequences are 'many'. `chunk_tokens`, `frames_in_flight` and
    `min_group_rows`: as the head's scheduler cuts prompts and fills frames; None: two frames for each stage.
    `chunk_choices`: what a plan's own `chunk_tokens` may be, ascending; none: as here.
    `weight_bits`: bits of a weight in the model's file, on average; 0: not known.
    """

    model: ModelFacts
    cost: StageCost
    wire: WireBytes
    context: int
    slots: int
    prompt_tokens: int = 512
    answer_tokens: int = 128
    streams: int = 4
    chunk_tokens: int = PROMPT_CHUNK
    chunk_choices: tuple[int, ...] = ()
    frames_in_flight: int | None = None
    min_group_rows: int = 2
    precision: Precision = Precision.RAW
    weight_bits: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.context, self.slots, self.prompt_tokens, self.streams, self.chunk_tokens, self.min_group_rows)
        if min(counts) < 1 or len(self.cost.layer_weights) != self.model.layers:
            raise ValueError("a workload's counts are at least 1, and its costs are those of the model's layers")


def pools_of(workers: Sequence[WorkerFacts]) -> tuple[MemoryPool, ...]:
    """The memory that workers share, by what they say of themselves: the least that any of a pool's workers sees."""
    shared = Counter(worker.memory_pool for worker in workers if worker.memory_pool)
    return tuple(
        MemoryPool(
            min(worker.pool_room for worker in workers if worker.memory_pool == pool),
            tuple(worker.name for worker in workers if worker.memory_pool == pool),
        )
        for pool, count in shared.items()
        if count > 1
    )


def _within(names: Sequence[str], kept: set[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in kept)
