"""What a stage takes in memory, counted from the tensor table before anything is read: by provider. Pure.

What an engine really took is in its answer to Load; a test holds this count against it.
"""

from __future__ import annotations

from dataclasses import replace

from hyperlane.core import Copies, ModelFacts, StageCost, WeightForm
from hyperlane.models import layout
from hyperlane.models.layout import UnitLayout
from hyperlane.models.quant import PLAIN_TYPES, form_bytes
from hyperlane.models.weights import TensorInfo, TensorSource
from hyperlane.stage.footprint import Asked, value_bytes, workspace
from hyperlane.stage.options import EngineOptions, KvElement
from hyperlane.stage.providers import PROVIDERS, Provider
from hyperlane.stage.sizes import unit_sizes

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
    packed = StageCost(
        layer_weights=tuple(_ready(source, layout.layer_layout(facts, i)) for i in range(facts.layers)),
        embedding=_ready(source, layout.embedding_layout(facts)),
        output=_ready(source, layout.output_layout(facts)),
        kv_per_layer=kv_bytes(facts, slots, context),
        workspace=workspace_bytes(facts, slots, context, step_tokens),
    )
    others = [row for row in PROVIDERS if not row.packs and row.offsets is not None]
    asked = Asked(slots, context, step_tokens, RUN_TOKENS)
    return replace(packed, elsewhere=tuple((row.ort_name, _on(row, facts, source, packed, asked)) for row in others))


def _on(row: Provider, facts: ModelFacts, source: TensorSource, packed: StageCost, asked: Asked) -> StageCost:
    """The cost on a provider that holds weights as arrays. `packed`: on the processor."""
    values = value_bytes(facts.family, half=row.half)
    assert row.offsets is not None
    layers = [unit_sizes(source, layout.layer_layout(facts, i), row.offsets, values) for i in range(facts.layers)]
    embedding = unit_sizes(source, layout.embedding_layout(facts), row.offsets, values)
    output = unit_sizes(source, layout.output_layout(facts), row.offsets, values)
    few_rows = row.many_rows_from and asked.slots >= row.many_rows_from
    tiles = all(unit.tiles for unit in (*layers, embedding, output))
    taken = packed.workspace
    if row.footprint is not None:
        asked = replace(asked, run_tokens=row.run_tokens or asked.run_tokens)
        taken = workspace(row.footprint, facts, asked, layers, half=row.half)
    return StageCost(
        layer_weights=tuple(unit.all for unit in layers),
        embedding=embedding.all,
        output=output.all,
        kv_per_layer=packed.kv_per_layer,
        workspace=taken,
        copies=Copies(tuple(unit.few_rows for unit in layers), output.few_rows) if few_rows and tiles else None,
        counted=True,
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
