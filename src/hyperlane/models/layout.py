"""Which tensors of a file make which part of a stage: the names of a GGUF file beside the paths of our graph.

Pure names: needs no file and no engine, so the planner counts bytes with it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperlane.core import ModelFacts, StageSpec, WeightForm
from hyperlane.errors import UnsupportedModel
from hyperlane.models.inventory import EMBEDDING, OUTPUT, OUTPUT_NORM

EMBEDDING_UNIT = "embedding"
"""The name of the unit whose rows are looked up, and not multiplied by."""

SINGLE_STREAM = frozenset({"gemma3"})
"""Families whose residual stream exceeds float16's 65,504."""

LINK_READERS = 3
"""Layers whose norms say what is of importance on the link before them."""


@dataclass(frozen=True, slots=True)
class MatrixPart:
    """A matrix at graph path `path`: `tensors` stacked row on row.

    `rotated_heads`: for each tensor, how many heads' rows the converter interleaved for rotation (0: none).
    """

    path: str
    tensors: tuple[str, ...]
    rotated_heads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class UnitLayout:
    """The smallest thing that is converted and kept: a layer, the embedding, or the projection.

    `vectors`: tensor names by graph path; `norm_bias` is added to their values. `weights`: what matrices that are
    stored in full become.
    """

    name: str
    matrices: tuple[MatrixPart, ...]
    vectors: Mapping[str, str]
    norm_bias: float = 0.0
    weights: WeightForm = WeightForm.FP16

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every tensor of the unit."""
        return tuple(name for part in self.matrices for name in part.tensors) + tuple(self.vectors.values())


def layer_layout(facts: ModelFacts, layer: int) -> UnitLayout:
    """The tensors of one layer.

    Raises:
        UnsupportedModel: no graph is known for the model's family.

    """
    if facts.family not in _VECTORS:
        raise UnsupportedModel(f"the architecture '{facts.family}' is not supported; known: {', '.join(_VECTORS)}")
    file, path = f"blk.{layer}", f"layer.{layer}"
    heads = {"attn_q": facts.heads, "attn_k": facts.kv_heads} if facts.interleaved_heads else {}
    return UnitLayout(
        path,
        tuple(
            MatrixPart(
                f"{path}/{short}",
                tuple(f"{file}.{tensor}.weight" for tensor in tensors),
                tuple(heads.get(tensor, 0) for tensor in tensors),
            )
            for short, tensors in _MATRICES.items()
        ),
        {f"{path}/{short}": f"{file}.{tensor}.weight" for short, tensor in _VECTORS[facts.family].items()},
        facts.norm_bias,
        facts.weights,
    )


def embedding_layout(facts: ModelFacts) -> UnitLayout:
    """The table of token embeddings."""
    part = MatrixPart(EMBEDDING_UNIT, (EMBEDDING,), (0,))
    return UnitLayout(EMBEDDING_UNIT, (part,), {}, weights=_of_vocabulary(facts.weights))


def output_layout(facts: ModelFacts) -> UnitLayout:
    """The projection to the vocabulary and the norm before it; the embedding where the output is tied to it."""
    matrix = EMBEDDING if facts.tied_output else OUTPUT
    part = MatrixPart("output", (matrix,), (0,))
    return UnitLayout("output", (part,), {"output/norm": OUTPUT_NORM}, facts.norm_bias, _of_vocabulary(facts.weights))


def link_layouts(spec: StageSpec) -> tuple[UnitLayout | None, UnitLayout | None]:
    """The tensors that decide what both links' values are multiplied by; None where these are not packed."""
    return (
        _link(spec.model, spec.layers.first) if spec.precision_in.packs else None,
        _link(spec.model, spec.layers.last) if spec.precision_out.packs else None,
    )


def _link(facts: ModelFacts, layer: int) -> UnitLayout:
    """The norms of the next layers that read what a link carries: how much of an error in each value counts.

    Behind the last layer it is the norm of the projection.
    """
    path = f"link.{layer}"
    readers = range(layer, min(layer + LINK_READERS, facts.layers))
    names = {f"{path}/{at}/{short}": f"blk.{at}.{tensor}.weight" for at in readers for short, tensor in _NORMS.items()}
    return UnitLayout(path, (), names or {f"{path}/output/norm": OUTPUT_NORM}, facts.norm_bias)


def _of_vocabulary(weights: WeightForm) -> WeightForm:
    """The embedding and the projection lose most by 4 bits, and gain least."""
    return WeightForm.INT8 if weights is WeightForm.INT4 else weights


_MATRICES = {
    "attn/qkv": ("attn_q", "attn_k", "attn_v"),
    "attn/out": ("attn_output",),
    "ffn/gate_up": ("ffn_gate", "ffn_up"),
    "ffn/down": ("ffn_down",),
}
_NORMS = {"attn/norm": "attn_norm", "ffn/norm": "ffn_norm"}
_GEMMA3_NORMS = {
    "attn/q_norm": "attn_q_norm",
    "attn/k_norm": "attn_k_norm",
    "attn/post_norm": "post_attention_norm",
    "ffn/post_norm": "post_ffw_norm",
}
_VECTORS: Mapping[str, Mapping[str, str]] = {"llama": _NORMS, "gemma3": _NORMS | _GEMMA3_NORMS}
