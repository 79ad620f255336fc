"""Llama's layer (SmolLM2, Llama 2 and 3, Mistral): packed QKV with rotary embedding, SwiGLU."""

from __future__ import annotations

import numpy as np

from hyperlane.graph.decoder import Decoder, Stream

GATE_GROUP = 128
GATE_EPSILON = float(1 << 30)
"""Of a norm that is to do nothing: beside it the mean of squares is nothing, and its root is a power of two."""


class LlamaDecoder(Decoder):
    """norm → attention → norm → SiLU(gate) · up → down."""

    def layer(self, stream: Stream, index: int) -> Stream:
        """Add layer `index` to the graph."""
        path = f"layer.{index}"
        normed, hidden = self.norm(stream, f"{path}/attn/norm")
        attended = self.attention([self.matmuls.matmul(normed, f"{path}/attn/qkv")], index)
        hidden, attended = self.wanted_only(hidden, index), self.wanted_only(attended, index)
        branch = self.to_stream(self.matmuls.matmul(attended, f"{path}/attn/out"))
        normed, hidden = self.norm(Stream(hidden, branch), f"{path}/ffn/norm")
        gated = self._gate_at_once if self.shape.fused_gate else self._gate
        product = gated(normed, f"{path}/ffn")
        return Stream(hidden, self.to_stream(self.matmuls.matmul(product, f"{path}/ffn/down")))

    def _gate(self, x: str, path: str) -> str:
        """SiLU(gate) · up."""
        gate, up = self._gate_and_up(x, path)
        active = self.graph.contrib("QuickGelu", [gate], f"{path}/silu", alpha=1.0)
        return self.graph.node("Mul", [active, up], f"{path}/product")

    def _gate_at_once(self, x: str, path: str) -> str:
        """As `_gate`, in one operator where there would be three: a gated norm whose norm does nothing."""
        gate, up = self._gate_and_up(x, path)
        one = np.full(GATE_GROUP, GATE_EPSILON**0.5, self.numbers.matrix_dtype)
        scale = self.graph.constant("gate/scale", one)
        inputs = [up, scale, gate]
        return self.graph.contrib("GatedRMSNorm", inputs, f"{path}/product", epsilon=GATE_EPSILON, activation="silu")

    def _gate_and_up(self, x: str, path: str) -> list[str]:
        ffn = self.facts.ffn
        return self.matmul_split(x, f"{path}/gate_up", {"gate": ffn, "up": ffn})
