"""Workers, plans and what a stage is built from. `Planner` is the seam that makes one of the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from hyperlane.core.model import ElementType, ModelFacts, Precision
from hyperlane.core.names import Address, Epoch

PROMPT_CHUNK = 64
"""Tokens of a prompt that go through a pipeline together, where nobody asked for another number or measured one."""

PROMPT_CHUNKS = (16, 32, 64, 128, 256)
"""What a plan chooses that number from. Powers of two: some engines cut what they compute at multiples of 64."""


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker says of itself (Describe). Memory in bytes, measured at the time of asking.

    `memory_pool`: workers that name the same pool take their memory from one another (one machine's RAM, one GPU's
    memory); empty: a pool of its own. `node` (its id), `machine` (a hash) and `cluster` (the beginning of its id) are
    in hex: who it says it is; empty when it does not. `hosts`: addresses at which its data port may be reached as well.
    `cores`: those of its machine that it may compute on; 0: not known. `host`: the same for workers that reach each
    other over loopback; empty: not known. `pool_free`: free bytes of the pool, where a limit makes `memory_free` less.
    """

    name: str
    control: Address
    data: Address
    device: str
    provider: str
    threads: int
    memory_total: int
    memory_free: int
    element: ElementType
    hyperlane_version: str
    protocol: int
    runtime_version: str
    memory_pool: str = ""
    node: str = ""
    machine: str = ""
    cluster: str = ""
    hosts: tuple[str, ...] = ()
    cores: int = 0
    host: str = ""
    pool_free: int = 0

    @property
    def pool_room(self) -> int:
        """Bytes that are free for all workers of its pool together."""
        return max(self.memory_free, self.pool_free)

    def shares_host_with(self, other: WorkerFacts) -> bool:
        """Whether a link between the two stays on one machine, as far as they say which they are on."""
        if self.host and other.host:
            return self.host == other.host
        return bool(self.machine) and self.machine == other.machine


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Layers `first` … `last` − 1 of a model."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def __str__(self) -> str:
        return f"{self.first}-{self.last - 1}"


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage of a plan and the bytes it was counted with."""

    index: int
    worker: WorkerFacts
    layers: LayerRange
    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan was expected to do when it was made, from what was measured. Seconds, tokens per second.

    `token_s`: per token of one stream; `stages_s`: what each stage computes of that. `ttft_s`: until the first token of
    `prompt_tokens` on an idle pipeline, cut into pieces of `chunk_tokens`. `many_rate`: of `streams` streams together,
    split into `groups` groups, with `frames` frames in flight at most.
    """

    token_s: float
    ttft_s: float
    prompt_tokens: int
    many_rate: float
    streams: int
    groups: int
    frames: int
    stages_s: tuple[float, ...]
    chunk_tokens: int = PROMPT_CHUNK


@dataclass(frozen=True, slots=True)
class Plan:
    """The ordered stages, the precision of the P + 1 links of the ring, KV slots and context (tokens a slot).

    `prediction`: None for a plan that was made without measurements.
    """

    model: ModelFacts
    stages: tuple[StagePlan, ...]
    slots: int
    context: int
    precisions: tuple[Precision, ...]
    prediction: Prediction | None = None


@dataclass(frozen=True, slots=True)
class StageSpec:
    """All that a worker needs to build one stage: what Load carries, with the weights' whereabouts beside it."""

    model: ModelFacts
    epoch: Epoch
    index: int
    stages: int
    layers: LayerRange
    slots: int
    context: int
    threads: int
    max_step_tokens: int
    precision_in: Precision = Precision.RAW
    precision_out: Precision = Precision.RAW

    @property
    def is_first(self) -> bool:
        """Whether this stage embeds token ids."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage projects to the vocabulary."""
        return self.index == self.stages - 1


SPARED = 4
"""Weights are held twice only where a quarter of a device's memory stays free."""


def holds_twice(free: int, total: int, needed: int) -> bool:
    """Whether a stage holds weights a second time, for speed: planner and worker ask this alike.

    Args:
        free: bytes of the device before the stage is loaded.
        total: all bytes of the device that stages may take.
        needed: by weights, the second copy and KV arena.

    """
    return free - needed >= total // SPARED


@dataclass(frozen=True, slots=True)
class Copies:
    """Bytes that weights take on a device that may hold them a second time (`holds_twice`)."""

    layers: tuple[int, ...]
    output: int

    def of(self, layers: LayerRange) -> int:
        """What a stage of these layers would take."""
        output = self.output if layers.last == len(self.layers) else 0
        return sum(self.layers[layers.first : layers.last]) + output


@dataclass(frozen=True, slots=True)
class StageCost:
    """Bytes that one layer, the embedding and the output projection take on a device, as the planner counts them.

    `copies`: a second form of the weights, None where there is none. `counted`: weights are known to the byte, so that
    what was measured of them adds nothing. `elsewhere`: the cost on devices of other providers, by ONNX Runtime's name.
    """

    layer_weights: tuple[int, ...]
    embedding: int
    output: int
    kv_per_layer: int
    workspace: int
    copies: Copies | None = None
    counted: bool = False
    elsewhere: tuple[tuple[str, StageCost], ...] = ()

    def on(self, provider: str) -> StageCost:
        """The cost on a provider's devices."""
        return next((cost for name, cost in self.elsewhere if name == provider), self)

    def each(self, change: Callable[[StageCost], StageCost]) -> StageCost:
        """The same with every provider's cost changed."""
        return replace(change(self), elsewhere=tuple((name, change(cost)) for name, cost in self.elsewhere))


class Planner(Protocol):
    """Facts in, plan out; pure. `node` hands one to the head."""

    def plan(
        self, model: ModelFacts, workers: Sequence[WorkerFacts], cost: StageCost, slots: int, context: int
    ) -> Plan:
        """Place every layer of the model on the workers.

        Raises:
            DoesNotFit: the message says which bytes are missing where and what would make it fit.

        """
        ...
