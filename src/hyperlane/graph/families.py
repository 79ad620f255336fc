"""Which decoder builds which family's graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import TensorProto

from hyperlane.errors import UnsupportedModel
from hyperlane.graph.decoder import Decoder, StageShape
from hyperlane.graph.gemma3 import Gemma3Decoder
from hyperlane.graph.llama import LlamaDecoder

FAMILIES: Mapping[str, type[Decoder]] = {"llama": LlamaDecoder, "gemma3": Gemma3Decoder}

FUSED_GATES = frozenset({"llama"})
"""Families whose gate is a SiLU, which `StageShape.fused_gate` is for."""


def build_stage(shape: StageShape, weights: Sequence[TensorProto]) -> bytes:
    """The serialised ONNX model of a stage; `weights` are its initialisers, usually pointers to external data.

    Raises:
        UnsupportedModel: there is no graph for the model's family.

    """
    family = shape.facts.family
    if family not in FAMILIES:
        raise UnsupportedModel(f"the architecture '{family}' is not supported; known: {', '.join(FAMILIES)}")
    return FAMILIES[family](shape).build(weights)
