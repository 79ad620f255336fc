"""What is measured on a device for one model: layers of its shape and weight types, at the sizes of a workload. Pure.

Knows no tensor's content: weights are made up where they are measured, as only their shapes and types cost time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hyperlane.cluster.planner.curve import Curve
from hyperlane.cluster.planner.facts import Workload
from hyperlane.core import ModelFacts
from hyperlane.models import inventory
from hyperlane.models.weights import TensorSource

SAMPLE_BYTES = 32 << 20
"""So many bytes of layers stand for all of a model's, each kind of layer as often as the model has it.

Enough that what a process takes tells the bytes of their weights.
"""

LEAST_SAMPLES = 3

LARGEST_BATCH = 32
SIZES_LIMIT = 4096
"""No batch, chunk or number of layers beyond this is measured, whoever asks."""

ENTRIES_STEP = 64
"""KV entries are rounded up to a multiple of this, so that small changes of a workload measure nothing anew."""

Types = tuple[str, ...]
"""GGML types of the tensors of a layer, in the order of `inventory.layer_tensors`; empty for one that is not there."""


@dataclass(frozen=True, slots=True)
class ProfileShape:
    """What a worker is asked to measure.

    `layers`: the types of each sample layer. `embedding`, `output`: types of these matrices. `rows`: one-token rows of
    decode steps, ascending from 1; `chunks`: tokens of chunks, ascending, at least 2: those above
    `PROMPT_CHUNK` where they tell something (`device`). `kv_entries`: what each row of a
    decode step has before it; `prompt_entries`: what a chunk has.
    `context`: tokens a slot of the arena holds, as some devices' speed depends on it; 0: as few as are needed.
    `counted_bytes`: what the planner counts for a layer's weights, on average; no worker is told.
    """

    model: ModelFacts
    layers: tuple[Types, ...]
    embedding: str
    output: str
    rows: tuple[int, ...]
    chunks: tuple[int, ...]
    kv_entries: int
    prompt_entries: int
    context: int = 0
    counted_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What a worker measured: see `DeviceCost` for the curves and `step_s`.

    `layer_bytes`: what a layer's weights take on the device, the mean of the samples; 0: too little to be told.
    `process_bytes`: what the worker takes without any model. `measured_s`: when, in seconds of its clock since 1970.
    `crowded`: other programs computed on the same cores meanwhile, so that it may be faster than this.
    """

    layer_decode: Curve
    layer_prefill: Curve
    embed: Curve
    project: Curve
    step_s: float
    layer_bytes: int
    process_bytes: int
    measured_s: int
    crowded: bool = False


def profile_shape(facts: ModelFacts, source: TensorSource, expected: Workload) -> ProfileShape:
    """What to measure for a model in a file, and the workload that is expected of it."""
    middle = expected.prompt_tokens + expected.answer_tokens // 2
    output = inventory.EMBEDDING if facts.tied_output else inventory.OUTPUT
    return ProfileShape(
        model=facts,
        layers=_samples(
            [_types(source, inventory.layer_tensors(facts, i)) for i in range(facts.layers)],
            sum(expected.cost.layer_weights) // facts.layers,
        ),
        embedding=_type(source, inventory.EMBEDDING),
        output=_type(source, output),
        rows=_sizes(1, 2, min(expected.slots, LARGEST_BATCH)),
        chunks=_chunks(expected),
        kv_entries=_rounded(middle, expected.context),
        prompt_entries=_rounded(expected.prompt_tokens // 2, expected.context),
        context=expected.context,
        counted_bytes=sum(expected.cost.layer_weights) // facts.layers,
    )


def _chunks(expected: Workload) -> tuple[int, ...]:
    """Up to the usual chunk, and the largest that a plan may choose."""
    usual, most = max(2, expected.chunk_tokens), max(expected.chunk_choices, default=0)
    return (*_sizes(2, 4, usual // 2), usual, most) if most > usual > 3 else _sizes(2, 4, usual)


def _samples(layers: list[Types], layer_bytes: int) -> tuple[Types, ...]:
    """As many of each kind as its share of the model says, well mixed."""
    count = min(len(layers), max(LEAST_SAMPLES, -(-SAMPLE_BYTES // max(1, layer_bytes))))
    kinds = Counter(layers)
    given = dict.fromkeys(kinds, 0)
    samples = []
    for number in range(1, count + 1):
        kind = max(kinds, key=lambda one: kinds[one] * number / len(layers) - given[one])
        given[kind] += 1
        samples.append(kind)
    return tuple(samples)


def _sizes(first: int, times: int, last: int) -> tuple[int, ...]:
    """From the first, each so many times the one before, and the last."""
    sizes = [first]
    while times * sizes[-1] < last:
        sizes.append(times * sizes[-1])
    return tuple(dict.fromkeys((*sizes, last)))


def _rounded(entries: int, context: int) -> int:
    """Leaves room for one more chunk's worth in short contexts."""
    return max(0, min(-(-entries // ENTRIES_STEP) * ENTRIES_STEP, context - 1))


def _types(source: TensorSource, names: Iterable[str]) -> Types:
    return tuple(_type(source, name) for name in names)


def _type(source: TensorSource, name: str) -> str:
    info = source.info(name)
    return info.type if info is not None else ""
