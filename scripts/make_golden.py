"""Writes what the engine tests compare with: a plain float32 forward pass in PyTorch on the dequantised weights.

    python scripts/make_golden.py MODEL.gguf tests/data/golden_NAME.npz

Needs torch 2.13 and gguf besides what Hyperlane needs for tokens; shares no code with the engine. The text is CPython
3.11's `pydoc_data.topics` (PSF licence), whose tokens are kept in the file, since other versions have another text.

The file holds, for the first 256 tokens: `tokens`, `logprobs` (of the true next token, at 255 positions), `top_ids`
and `top_logprobs` (20 at each). And for the perplexity: `text` (20,000 tokens), `windows`, `window` and `nll`, the mean
over the second half of each window; a model that wants BOS has it in place of each window's first token.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import pydoc_data.topics
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.tokenizer import Tokenizer

TEXT_SHA256 = "84f96ddcfe54a36fa7fae1e0324b18dffdbae5239ca1b94c1bebb21540416182"
TEXT_BYTES = 120_000
GOLDEN_TOKENS, TOP = 256, 20
TEXT_TOKENS, WINDOW = 20_000, 512


class File:
    """A GGUF file's metadata and dequantised tensors."""

    def __init__(self, path: Path) -> None:
        self._reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.arch = self.value("general.architecture")

    def value(self, key: str, default: object = None) -> object:
        """A metadata value by its whole key."""
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def fact(self, key: str, default: object = None) -> object:
        """A metadata value of the architecture."""
        return self.value(f"{self.arch}.{key}", default)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._tensors

    def tensor(self, name: str) -> Tensor:
        """A tensor as float32."""
        found = self._tensors[name]
        return torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type).astype(np.float32).copy())


@dataclass(frozen=True)
class Rope:
    """Cosines and sines [positions, head_dim / 2]."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def make(cls, theta: float, dims: int, positions: int, factors: Tensor | None = None) -> Rope:
        """Tables in float64, rounded once."""
        frequency = theta ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
        if factors is not None:
            frequency = frequency / factors.double()
        angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequency)
        return cls(angles.cos().float(), angles.sin().float())

    def halves(self, x: Tensor) -> Tensor:
        """Rotate x [tokens, heads, dims], value i with value i + dims / 2."""
        cos, sin = self.cos[: len(x), None], self.sin[: len(x), None]
        low, high = x.chunk(2, dim=-1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)

    def neighbours(self, x: Tensor) -> Tensor:
        """Rotate x [tokens, heads, dims], value 2i with value 2i + 1: the order of Llama's files."""
        cos, sin = self.cos[: len(x), None], self.sin[: len(x), None]
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


class Model:
    """Weights and forward pass of family llama or gemma3."""

    def __init__(self, file: File) -> None:
        self.gemma = file.arch == "gemma3"
        self.layers = int(file.fact("block_count"))
        self.heads = int(file.fact("attention.head_count"))
        self.kv_heads = int(file.fact("attention.head_count_kv"))
        self.hidden = int(file.fact("embedding_length"))
        self.dims = int(file.fact("attention.key_length", self.hidden // self.heads))
        self.eps = float(file.fact("attention.layer_norm_rms_epsilon"))
        self.window = int(file.fact("attention.sliding_window", 0)) if self.gemma else 0
        factors = file.tensor("rope_freqs.weight") if file.has("rope_freqs.weight") else None
        self.rope = Rope.make(float(file.fact("rope.freq_base")), self.dims, WINDOW, factors)
        self.local_rope = Rope.make(10_000.0, self.dims, WINDOW)
        self.embedding = file.tensor("token_embd.weight")
        self.output = file.tensor("output.weight") if file.has("output.weight") else self.embedding
        self.output_norm = file.tensor("output_norm.weight")
        names = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
        names += ["attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"] if self.gemma else []
        self.blocks = [
            {name: file.tensor(f"blk.{layer}.{name}.weight") for name in names} for layer in range(self.layers)
        ]

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm over the last axis; Gemma's files hold weights with 1 already added."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * weight

    def logits(self, tokens: Tensor, first: int) -> Tensor:
        """Logits [tokens − first, vocab] after the tokens from `first` on."""
        x = self.embedding[tokens]
        if self.gemma:
            x = x * math.sqrt(self.hidden)
        for index, weights in enumerate(self.blocks):
            branch = self._attention(self.norm(x, weights["attn_norm"]), weights, index)
            x = x + (self.norm(branch, weights["post_attention_norm"]) if self.gemma else branch)
            branch = self._feed_forward(self.norm(x, weights["ffn_norm"]), weights)
            x = x + (self.norm(branch, weights["post_ffw_norm"]) if self.gemma else branch)
        return self.norm(x[first:], self.output_norm) @ self.output.T

    def _attention(self, x: Tensor, weights: dict[str, Tensor], index: int) -> Tensor:
        q = (x @ weights["attn_q"].T).view(len(x), self.heads, self.dims)
        k = (x @ weights["attn_k"].T).view(len(x), self.kv_heads, self.dims)
        v = (x @ weights["attn_v"].T).view(len(x), self.kv_heads, self.dims)
        is_global = not self.window or (index + 1) % 6 == 0
        if self.gemma:
            q, k = self.norm(q, weights["attn_q_norm"]), self.norm(k, weights["attn_k_norm"])
            rope = self.rope if is_global else self.local_rope
            q, k = rope.halves(q), rope.halves(k)
        else:
            q, k = self.rope.neighbours(q), self.rope.neighbours(k)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * self.dims**-0.5
        position = torch.arange(len(x))
        distance = position[:, None] - position[None, :]
        hidden = (distance < 0) if is_global else (distance < 0) | (distance >= self.window)
        shares = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        return torch.einsum("hqk,khd->qhd", shares, v).flatten(1) @ weights["attn_output"].T

    def _feed_forward(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        gate = x @ weights["ffn_gate"].T
        active = functional.gelu(gate, approximate="tanh") if self.gemma else functional.silu(gate)
        return (active * (x @ weights["ffn_up"].T)) @ weights["ffn_down"].T


def text() -> str:
    """All topics by key, joined by a blank line, cut to whole lines."""
    topics = pydoc_data.topics.topics
    raw = "\n\n".join(topics[key].strip() for key in sorted(topics)).encode()[:TEXT_BYTES]
    raw = raw[: raw.rfind(b"\n") + 1]
    if hashlib.sha256(raw).hexdigest() != TEXT_SHA256:
        raise SystemExit("this Python has another text: run it with CPython 3.11.7")
    return raw.decode()


def window_of(tokens: Tensor, start: int, length: int, bos: int | None) -> Tensor:
    """Tokens of a window, BOS in place of the first where the model wants it."""
    window = tokens[start : start + length].clone()
    if bos is not None:
        window[0] = bos
    return window


def main() -> None:
    """Read the arguments, compute, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("golden", type=Path)
    given = parser.parse_args()
    file = File(given.model)
    with GgufFile(given.model) as ours:
        tokens = torch.tensor(Tokenizer.from_metadata(ours).encode(text())[:TEXT_TOKENS])
    bos = int(file.value("tokenizer.ggml.bos_token_id")) if file.value("tokenizer.ggml.add_bos_token") else None
    model = Model(file)
    with torch.inference_mode():
        golden = window_of(tokens, 0, GOLDEN_TOKENS, bos)
        logprobs = model.logits(golden, 0)[:-1].log_softmax(dim=-1)
        top = logprobs.topk(TOP, dim=-1)
        half, windows, losses = WINDOW // 2, len(tokens) // WINDOW, []
        for index in range(windows):
            window = window_of(tokens, index * WINDOW, WINDOW, bos)
            scored = model.logits(window, half)[:-1].log_softmax(dim=-1)
            losses.append(-scored.gather(1, window[half + 1 :, None]))
            print(f"window {index + 1} of {windows}: {torch.cat(losses).mean().exp():.4f}", flush=True)
    np.savez_compressed(
        given.golden,
        tokens=golden.numpy().astype(np.int32),
        logprobs=logprobs.gather(1, golden[1:, None])[:, 0].numpy(),
        top_ids=top.indices.numpy().astype(np.int32),
        top_logprobs=top.values.numpy(),
        text=tokens.numpy().astype(np.int32),
        windows=np.int64(windows),
        window=np.int64(WINDOW),
        bos=np.int64(-1 if bos is None else bos),
        nll=torch.cat(losses).double().mean().numpy(),
    )


if __name__ == "__main__":
    main()
