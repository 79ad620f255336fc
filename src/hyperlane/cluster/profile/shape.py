"""What is measured on a device for one model: layers of its shape and weight types, at the sizes of a workload. Pure.

Knows no tensor's content: weights are made up where they are measured, as only their shapes and types cost time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hyperlane.cluster.planner.facts import Workload
from hyperlane.core import ModelFacts
from hyperlane.models import inventory
from hyperlane.models.weights import TensorSource

SAMPLE_LAYERS = 8
"""How many layers stand for all of a model's, each kind of layer as often as the model has it."""

LARGEST_BATCH = 32
ENTRIES_STEP = 64
"""KV entries are rounded up to a multiple of this, so that small changes of a workload measure nothing anew."""

Types = tuple[str, ...]
"""GGML types of the tensors of a layer, in the order of `inventory.layer_tensors`; empty for one that is not there."""


@dataclass(frozen=True, slots=True)
class ProfileShape:
    """What a worker is asked to measure.

    `layers`: the types of each sample layer. `embedding`, `output`: types of these matrices. `rows`: one-token rows of
    decode steps, ascending from 1; `chunks`: tokens of chunks, ascending, at least 2. `kv_entries`: what each row of a
    decode step has before it; `prompt_entries`: what a chunk has.
    """

    model: ModelFacts
    layers: tuple[Types, ...]
    embedding: str
    output: str
    rows: tuple[int, ...]
    chunks: tuple[int, ...]
    kv_entries: int
    prompt_entries: int


def profile_shape(facts: ModelFacts, source: TensorSource, expected: Workload) -> ProfileShape:
    """What to measure for a model in a file, and the workload that is expected of it."""
    middle = expected.prompt_tokens + expected.answer_tokens // 2
    output = inventory.EMBEDDING if facts.tied_output else inventory.OUTPUT
    return ProfileShape(
        model=facts,
        layers=_samples([_types(source, inventory.layer_tensors(facts, i)) for i in range(facts.layers)]),
        embedding=_type(source, inventory.EMBEDDING),
        output=_type(source, output),
        rows=_sizes(1, min(expected.slots, LARGEST_BATCH)),
        chunks=_sizes(2, max(2, expected.chunk_tokens)),
        kv_entries=_rounded(middle, expected.context),
        prompt_entries=_rounded(expected.prompt_tokens // 2, expected.context),
    )


def _samples(layers: list[Types]) -> tuple[Types, ...]:
    """As many of each kind as its share of the model says, the most usual kinds first."""
    kinds, count = Counter(layers), min(SAMPLE_LAYERS, len(layers))
    shares = {kind: count * number / len(layers) for kind, number in kinds.most_common()}
    whole = {kind: int(share) for kind, share in shares.items()}
    rest = sorted(shares, key=lambda kind: whole[kind] - shares[kind])[: count - sum(whole.values())]
    return tuple(kind for kind in shares for _ in range(whole[kind] + (kind in rest)))


def _sizes(first: int, last: int) -> tuple[int, ...]:
    """Doubling from the first, and the last."""
    sizes = [first]
    while 2 * sizes[-1] < last:
        sizes.append(2 * sizes[-1])
    return tuple(dict.fromkeys((*sizes, last)))


def _rounded(entries: int, context: int) -> int:
    """Leaves room for one more chunk's worth in short contexts."""
    return max(0, min(-(-entries // ENTRIES_STEP) * ENTRIES_STEP, context - 1))


def _types(source: TensorSource, names: Iterable[str]) -> Types:
    return tuple(_type(source, name) for name in names)


def _type(source: TensorSource, name: str) -> str:
    info = source.info(name)
    return info.type if info is not None else ""
