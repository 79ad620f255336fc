"""Llama's layer (SmolLM2, Llama 2 and 3, Mistral): packed QKV with rotary embedding, SwiGLU."""

from __future__ import annotations

from hyperlane.graph.decoder import Decoder, Stream


class LlamaDecoder(Decoder):
    """norm → attention → norm → SiLU(gate) · up → down."""

    def layer(self, stream: Stream, index: int) -> Stream:
        """Add layer `index` to the graph."""
        path, ffn = f"layer.{index}", self.facts.ffn
        normed, hidden = self.norm(stream, f"{path}/attn/norm")
        attended = self.attention([self.matmuls.matmul(normed, f"{path}/attn/qkv")], index)
        hidden, attended = self.wanted_only(hidden, index), self.wanted_only(attended, index)
        branch = self.to_stream(self.matmuls.matmul(attended, f"{path}/attn/out"))
        normed, hidden = self.norm(Stream(hidden, branch), f"{path}/ffn/norm")
        gate, up = self.split(self.matmuls.matmul(normed, f"{path}/ffn/gate_up"), {"gate": ffn, "up": ffn})
        active = self.graph.contrib("QuickGelu", [gate], f"{path}/ffn/silu", alpha=1.0)
        product = self.graph.node("Mul", [active, up], f"{path}/ffn/product")
        return Stream(hidden, self.to_stream(self.matmuls.matmul(product, f"{path}/ffn/down")))
