"""Gemma 3's layer: norms of q and k, local and global attention, norms around each branch, GeGLU.

GroupQueryAttention's own q and k norms exist on CUDA and WebGPU alone, so here they are nodes before it.
"""

from __future__ import annotations

import numpy as np

from hyperlane.graph.decoder import Decoder, Stream


class Gemma3Decoder(Decoder):
    """norm → attention → norm, added; norm → GELU(gate) · up → down → norm, added."""

    def layer(self, stream: Stream, index: int) -> Stream:
        """Add layer `index` to the graph."""
        path, ffn = f"layer.{index}", self.facts.ffn
        normed, hidden = self.norm(stream, f"{path}/attn/norm")
        attended = self._attend(normed, index)
        hidden, attended = self.wanted_only(hidden, index), self.wanted_only(attended, index)
        branch = self._post_norm(self.matmuls.matmul(attended, f"{path}/attn/out"), f"{path}/attn/post_norm")
        normed, hidden = self.norm(Stream(hidden, branch), f"{path}/ffn/norm")
        gate, up = self.matmul_split(normed, f"{path}/ffn/gate_up", {"gate": ffn, "up": ffn})
        active = self.graph.node("Gelu", [gate], f"{path}/ffn/gelu", approximate="tanh")
        product = self.graph.node("Mul", [active, up], f"{path}/ffn/product")
        down = self.matmuls.matmul(product, f"{path}/ffn/down")
        return Stream(hidden, self._post_norm(down, f"{path}/ffn/post_norm"))

    def _post_norm(self, x: str, path: str) -> str:
        return self.plain_norm(self.to_stream(x), path)

    def _attend(self, normed: str, index: int) -> str:
        facts, path = self.facts, f"layer.{index}/attn"
        q_size, kv_size = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
        qkv = self.matmuls.matmul(normed, f"{path}/qkv")
        q, k, v = self.split(qkv, {"q": q_size, "k": kv_size, "v": kv_size})
        q = self._head_norm(q, f"{path}/q_norm", facts.heads)
        k = self._head_norm(k, f"{path}/k_norm", facts.kv_heads)
        is_global = not facts.window or (index + 1) % facts.global_every == 0
        if is_global:
            return self.attention([q, k, v], index)
        return self.attention([q, k, v], index, window=facts.window, rope=facts.rope_local)

    def _head_norm(self, x: str, path: str, heads: int) -> str:
        """RMS norm of each head's values: x [batch, tokens, heads · head_dim], and so is the result."""
        graph, size = self.graph, self.facts.head_dim
        by_head = graph.constant(f"by_head.{heads}", np.array([0, 0, heads, size], np.int64))
        joined = graph.constant("heads_joined", np.array([0, 0, -1], np.int64))
        split = self.to_stream(graph.node("Reshape", [x, by_head], f"{path}/heads"))
        normed = self.to_matrix(self.plain_norm(split, path))
        return graph.node("Reshape", [normed, joined], f"{path}/joined")
