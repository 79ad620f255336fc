"""How much memory workers are given, so that a model takes several of them. Knows no process."""

from __future__ import annotations

from pathlib import Path

from hyperlane.cluster.cost import stage_cost
from hyperlane.config import ServeConfig, load
from hyperlane.models.source import facts_of, open_model

MOST_NEEDED = 3
"""With more, stages between the first and the last hold layers where those hold the embedding and the projection."""


def memory_for(model: Path, needed: int, slots: int, context: int) -> int:
    """Bytes of which each of `needed` workers takes its share of a model's layers, and one worker less does not do.

    Every worker may be first or last, so that it has room for the embedding or the projection as well.

    Raises:
        ValueError: it cannot be so many.

    """
    with open_model(model) as file:
        facts = facts_of(file)
        if not 1 <= needed <= min(MOST_NEEDED, facts.layers):
            raise ValueError(f"a model of {facts.layers} layers cannot be made to need {needed} workers")
        step_tokens = load(ServeConfig, model=str(model), slots=slots, context=context).step_tokens
        cost = stage_cost(facts, file, slots, context, step_tokens)
    layers = -(-facts.layers // needed)
    layer = max(cost.layer_weights) + cost.kv_per_layer
    ends = cost.embedding + cost.output if needed == 1 else max(cost.embedding, cost.output)
    return cost.workspace + ends + layers * layer
