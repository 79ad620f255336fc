"""What a stage takes of a device's memory besides weights and KV entries: a provider's own model of it. Pure.

Every constant names how it was measured; `benchmarks/gpu_memory.py` holds them against the driver's count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyperlane.core import ModelFacts
from hyperlane.models.layout import SINGLE_STREAM
from hyperlane.stage.sizes import UnitSizes, ValueBytes

HALF, SINGLE = 2, 4


@dataclass(frozen=True, slots=True)
class Footprint:
    """One provider's constants, in bytes.

    `runtime`: kernels, and libraries' workspaces, that the first steps bring. `few_rows`: what kernels for a few rows
    bring besides, in stages of several slots. `node`: for each layer of a captured
    step. `values`: times that the widest values of a run are held. `words`: for each word of the vocabulary that
    rows of a run are projected to. `unpacks`: a product of several rows holds its matrix in float16.
    """

    runtime: int
    few_rows: int = 0
    node: int = 0
    values: float = 1.0
    words: int = 4
    unpacks: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What a stage is sized for. `run_tokens`: of a row in one run."""

    slots: int
    context: int
    step_tokens: int
    run_tokens: int


def value_bytes(family: str, *, half: bool) -> ValueBytes:
    """Of a provider that computes in float16, or in float32."""
    return ValueBytes(HALF if half and family not in SINGLE_STREAM else SINGLE, HALF if half else SINGLE)


def workspace(model: Footprint, facts: ModelFacts, asked: Asked, layers: Sequence[UnitSizes], *, half: bool) -> int:
    """Bytes of a stage's buffers, of what a run computes at its widest, and of captured steps."""
    value = value_bytes(facts.family, half=half)
    tokens = min(asked.step_tokens, asked.run_tokens)
    wide = 3 * facts.ffn + (facts.heads + 2 * facts.kv_heads) * facts.head_dim
    run = tokens * (2 * facts.hidden * value.stream + wide * value.matrix)
    frames = 2 * (asked.step_tokens + asked.slots) * facts.hidden * value.stream
    unpacked = HALF * max((unit.widest for unit in layers), default=0) if model.unpacks and tokens > 1 else 0
    steps = 2 * asked.slots * facts.layers * model.node
    words = asked.slots * facts.vocab * model.words
    runtime = model.runtime + (model.few_rows if asked.slots > 1 else 0)
    return runtime + int(model.values * run) + frames + unpacked + steps + words
