"""What a stage takes in memory, counted from the tensor table before anything is read. Pure.

What an engine really took is in its answer to Load; a test holds this count against it.
"""

from __future__ import annotations

from hyperlane.core import ModelFacts, StageCost, WeightForm
from hyperlane.models import layout
from hyperlane.models.layout import UnitLayout
from hyperlane.models.quant import PLAIN_TYPES, form_bytes
from hyperlane.models.weights import TensorInfo, TensorSource
from hyperlane.stage.options import EngineOptions, KvElement

READY_FORM = 1.25
"""Weights in the engine's ready form take at most this times their bytes as a file, or rounding, leaves them."""

KV_VALUE_BYTES = 4 if EngineOptions().kv is KvElement.F32 else 2

RUNTIME_BYTES = 64 << 20
"""What an engine takes before its first weight."""

ACTIVATION_BYTES = 4

RUN_TOKENS = 128
"""No engine computes the attention of more tokens of a row at a time (`stage.runs`)."""


def stage_cost(facts: ModelFacts, source: TensorSource, slots: int, context: int, step_tokens: int) -> StageCost:
    """Bytes of each part for an arena of `slots` × `context` positions and steps of at most `step_tokens` tokens."""
    return StageCost(
        layer_weights=tuple(_ready(source, layout.layer_layout(facts, i)) for i in range(facts.layers)),
        embedding=_ready(source, layout.embedding_layout(facts)),
        output=_ready(source, layout.output_layout(facts)),
        kv_per_layer=kv_bytes(facts, slots, context),
        workspace=workspace_bytes(facts, slots, context, step_tokens),
    )


def kv_bytes(facts: ModelFacts, slots: int, context: int) -> int:
    """Keys and values of one layer; every slot has one position to spare, which padding rows write."""
    return 2 * slots * (context + 1) * facts.kv_heads * facts.head_dim * KV_VALUE_BYTES


def workspace_bytes(facts: ModelFacts, slots: int, context: int, step_tokens: int) -> int:
    """What computing one step takes at its widest: the feed-forward part, or attention's scores of one run."""
    wide = 2 * facts.hidden + 3 * facts.ffn + (facts.heads + 2 * facts.kv_heads) * facts.head_dim
    scores = facts.heads * min(context, facts.context)
    logits = slots * facts.vocab
    return RUNTIME_BYTES + ACTIVATION_BYTES * (step_tokens * wide + min(step_tokens, RUN_TOKENS) * scores + logits)


def _ready(source: TensorSource, unit: UnitLayout) -> int:
    infos = (source.info(name) for name in unit.tensors)
    return int(READY_FORM * sum(_form_bytes(info, unit.weights) for info in infos if info is not None))


def _form_bytes(info: TensorInfo, weights: WeightForm) -> int:
    """What stays quantised as it is takes what it took; what is stored in full takes what it becomes."""
    return form_bytes(info, exact=True, weights=weights) if info.type in PLAIN_TYPES else info.nbytes
