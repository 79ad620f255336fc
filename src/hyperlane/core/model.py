"""What a model is, and in which numbers it is computed and sent."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Precision(enum.StrEnum):
    """How hidden states are packed on a link for a whole epoch.

    RAW: not at all, values of the engines' own type. F32: not either, float32 between engines of different types.
    """

    RAW = "raw"
    INT8 = "int8"
    INT4 = "int4"
    F32 = "f32"

    @property
    def packs(self) -> bool:
        """Whether values lose bits."""
        return self in {Precision.INT8, Precision.INT4}


class ElementType(enum.StrEnum):
    """An engine's own activation type: what a `raw` link carries."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"

    @property
    def bytes(self) -> int:
        """Bytes of one value."""
        return 4 if self is ElementType.F32 else 2


class WeightForm(enum.StrEnum):
    """What matrices that a model stores in full (F32, F16, BF16) become while they are loaded.

    FP16: they are not quantised (a CPU computes with them in float32). INT8, INT4: blocks of 32, rounded to nearest;
    with INT4 the embedding and the projection, which need it most, are INT8.
    """

    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True)
class RopeFacts:
    """Rotary embedding of one kind of layer. `dims` of a head's values are rotated, pairs taken half a head apart.

    `factors`: one divisor per rotated pair (Llama 3's `rope_freqs`), empty for none. `scale` divides positions.
    """

    theta: float
    dims: int
    scale: float = 1.0
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """All that a stage's graph, a plan and a tokenizer need to know of a model, apart from its weights.

    `fingerprint` identifies the content (hex SHA-256 of the whole file, as hubs state it): a worker's copy is the same
    model exactly when it is equal. `window` is the number of positions a local layer sees (0: all layers are
    global); `global_every` says that layer i is global when (i + 1) % global_every == 0. `interleaved_heads`: the rows
    of a head of `attn_q` and `attn_k` lie in pairs that rotate together, not half a head apart. `norm_bias` is what the
    weights of norms are stored less. `weights` is what was asked for, not a property of the files.
    """

    name: str
    family: str
    fingerprint: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rms_eps: float
    rope: RopeFacts
    tied_output: bool
    window: int = 0
    global_every: int = 0
    rope_local: RopeFacts | None = None
    attention_scale: float = 0.0
    embedding_scale: float = 1.0
    logit_softcap: float = 0.0
    attention_softcap: float = 0.0
    interleaved_heads: bool = False
    norm_bias: float = 0.0
    weights: WeightForm = WeightForm.FP16
