"""Which tensors a model of each family has, and in which shapes. Knows GGUF's names; reads nothing."""

from __future__ import annotations

from collections.abc import Mapping

from hyperlane.core import ModelFacts

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
OUTPUT_NORM = "output_norm.weight"
ROPE_FACTORS = "rope_freqs.weight"

Shapes = Mapping[str, tuple[int, ...]]
"""By tensor name: the row-major shape, [out, in] of a matrix."""


def layer_tensors(facts: ModelFacts, layer: int) -> Shapes:
    """The tensors of one layer."""
    hidden, ffn, head = facts.hidden, facts.ffn, facts.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (facts.heads * head, hidden),
        "attn_k": (facts.kv_heads * head, hidden),
        "attn_v": (facts.kv_heads * head, hidden),
        "attn_output": (hidden, facts.heads * head),
        "ffn_norm": (hidden,),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
    }
    if facts.family == "gemma3":
        shapes |= {
            "attn_q_norm": (head,),
            "attn_k_norm": (head,),
            "post_attention_norm": (hidden,),
            "post_ffw_norm": (hidden,),
        }
    return {f"blk.{layer}.{middle}.weight": shape for middle, shape in shapes.items()}


def embedding_tensors(facts: ModelFacts) -> Shapes:
    """The tensors that the first stage needs besides its layers'."""
    return {EMBEDDING: (facts.vocab, facts.hidden)}


def output_tensors(facts: ModelFacts) -> Shapes:
    """The tensors that the last stage needs besides its layers'; the embedding's when the output is tied to it."""
    return {OUTPUT_NORM: (facts.hidden,), EMBEDDING if facts.tied_output else OUTPUT: (facts.vocab, facts.hidden)}


def all_tensors(facts: ModelFacts) -> Shapes:
    """Every tensor of the model."""
    shapes = {**embedding_tensors(facts), **output_tensors(facts)}
    for layer in range(facts.layers):
        shapes |= layer_tensors(facts, layer)
    return shapes
