"""What a plan is made for: the workload that is expected of a model, and what of it is measured on devices. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from hyperlane.cluster.planner.facts import WireBytes, Workload
from hyperlane.cluster.profile.shape import ProfileShape, profile_shape
from hyperlane.core import PROMPT_CHUNK, PROMPT_CHUNKS, ModelFacts, Precision, StageCost
from hyperlane.errors import ConfigError
from hyperlane.models.weights import TensorInfo, TensorSource
from hyperlane.wire.packing import packed_bytes

PROMPT_TOKENS = 512
ANSWER_TOKENS = 128
"""Of the request that speeds are predicted for, where the context has room for it."""

LONGEST_DEFAULT_CONTEXT = 8192
"""A model's own context may be 128k: a KV arena for that is asked for, not given."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be placed."""

    workload: Workload
    shape: ProfileShape


@dataclass(frozen=True, slots=True)
class Use:
    """How the head will use a pipeline: KV slots of `context` tokens, prompts cut into `chunk_tokens`.

    `chunk_tokens` None: as a plan chooses. `frames_in_flight` None: as many as are best. `precision`: what links are
    counted with.
    """

    slots: int
    context: int
    chunk_tokens: int | None = None
    frames_in_flight: int | None = None
    precision: Precision = Precision.RAW


def wanted(facts: ModelFacts, source: TensorSource, cost: StageCost, use: Use) -> Wanted:
    """The workload of a model: as many streams as there are slots, with prompts and answers of a usual length."""
    prompt = min(PROMPT_TOKENS, max(1, use.context // 2))
    workload = Workload(
        model=facts,
        cost=cost,
        wire=WireBytes(*(packed_bytes(facts.hidden, precision) for precision in (Precision.INT8, Precision.INT4))),
        context=use.context,
        slots=use.slots,
        prompt_tokens=prompt,
        answer_tokens=min(ANSWER_TOKENS, max(1, use.context - prompt)),
        streams=use.slots,
        chunk_tokens=use.chunk_tokens or PROMPT_CHUNK,
        chunk_choices=() if use.chunk_tokens else tuple(size for size in PROMPT_CHUNKS if size <= max(prompt, 16)),
        frames_in_flight=use.frames_in_flight,
        precision=use.precision,
        weight_bits=weight_bits(filter(None, map(source.info, source.names()))),
    )
    return Wanted(workload, profile_shape(facts, source, workload))


def context_of(asked: int | None, facts: ModelFacts) -> int:
    """Tokens of a slot.

    Raises:
        ConfigError: more were asked for than the model was made for.

    """
    if asked is not None and asked > facts.context:
        raise ConfigError(f"--context {asked}: {facts.name} was made for at most {facts.context} tokens")
    return asked or min(facts.context, LONGEST_DEFAULT_CONTEXT)


def weight_bits(tensors: Iterable[TensorInfo]) -> float:
    """Bits of a weight on average; 0 without any."""
    sizes = [(tensor.nbytes, prod(tensor.shape)) for tensor in tensors]
    values = sum(count for _, count in sizes)
    return 8 * sum(nbytes for nbytes, _ in sizes) / values if values else 0.0
