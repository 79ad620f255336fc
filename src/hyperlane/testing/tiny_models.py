"""Small but valid GGUF files with random weights, for tests that need a model and no download.

Knows how files are written (through the `gguf` package); knows nothing of how Hyperlane reads or runs them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, TokenType

from hyperlane.models.random_blocks import random_matrix

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "h e", "Ġt he", "i n", "Ġ a", "e r", "o n", "r e", "Ġ s", "a n", "l l", "o u")


@dataclass(frozen=True, slots=True)
class TinyModel:
    """What to write. Every column count must be a multiple of its type's block (32, or 256 for K types).

    `type`: of all matrices but the embedding, unless `types` names another by the tensor's middle name
    (`{"attn_v": "Q6_K"}`). `vocab` 0: as many words as the tokenizer has; more are padded with unused ones.
    `head_dim` 0: hidden / heads. `tied` None: as the family does it (gemma3 is tied, llama not).
    `rope_factors`: Llama 3's `rope_freqs.weight`. `window` and `global_every` are read for gemma3 only.
    `distinct_rows`: a matrix repeats so many rows, so that a model of any size is written soon; 0 for no repetition.
    """

    family: str = "llama"
    layers: int = 4
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 128
    vocab: int = 0
    type: str = "Q4_0"
    context: int = 256
    seed: int = 0
    embedding_type: str = "Q8_0"
    types: Mapping[str, str] = field(default_factory=dict)
    head_dim: int = 0
    tied: bool | None = None
    rope_factors: bool = False
    window: int = 16
    global_every: int = 2
    tokenizer_pre: str = "smollm"
    distinct_rows: int = 0

    @property
    def head_size(self) -> int:
        """Values in one head."""
        return self.head_dim or self.hidden // self.heads

    @property
    def words(self) -> int:
        """Size of the vocabulary."""
        return max(self.vocab, len(SPECIALS) + 256 + len(MERGES))

    @property
    def is_tied(self) -> bool:
        """Whether the output projection is the embedding."""
        return self.family == "gemma3" if self.tied is None else self.tied


def write_tiny_model(path: Path, model: TinyModel | None = None, /, **fields: Any) -> Path:  # noqa: ANN401
    """Write a model to `path` and return it; `fields` replace those of `model` (of `TinyModel()` by default).

    The same arguments give the same bytes. Logits have a standard deviation of about 3; of about 0.5 when the output
    is tied, since larger embeddings would make every word predict itself.
    """
    model = replace(model or TinyModel(), **fields)
    writer = GGUFWriter(path, model.family)
    _add_facts(writer, model)
    _add_tokenizer(writer, model)
    for name, shape, kind in _tensors(model):
        _add_tensor(writer, model, name, shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_facts(writer: GGUFWriter, model: TinyModel) -> None:
    writer.add_type("model")
    writer.add_name(f"Tiny {model.family}")
    writer.add_block_count(model.layers)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.ffn)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6 if model.family == "gemma3" else 1e-5)
    if model.family == "gemma3":
        writer.add_key_length(model.head_size)
        writer.add_value_length(model.head_size)
        writer.add_rope_freq_base(1_000_000.0)
        writer.add_sliding_window(model.window)
        writer.add_sliding_window_pattern(model.global_every)
        return
    writer.add_vocab_size(model.words)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(model.head_size)
    if model.head_dim:
        writer.add_key_length(model.head_dim)
        writer.add_value_length(model.head_dim)


def _add_tokenizer(writer: GGUFWriter, model: TinyModel) -> None:
    words = [*SPECIALS, *byte_words(), *(merge.replace(" ", "") for merge in MERGES)]
    kinds = [TokenType.CONTROL] * len(SPECIALS) + [TokenType.NORMAL] * (len(words) - len(SPECIALS))
    unused = model.words - len(words)
    words += [f"[unused{index}]" for index in range(unused)]
    kinds += [TokenType.UNUSED] * unused
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(model.tokenizer_pre)
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def byte_words() -> list[str]:
    """The 256 words of byte-level BPE: printable Latin-1 bytes as themselves, the others moved up from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(moved)) for byte in range(256)]


def _tensors(model: TinyModel) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Names, row-major shapes and types in file order."""
    hidden, ffn = model.hidden, model.ffn
    queries, keys = model.heads * model.head_size, model.kv_heads * model.head_size
    yield "token_embd.weight", (model.words, hidden), model.embedding_type
    matrices = {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
    }
    norms = {"attn_norm": hidden, "ffn_norm": hidden}
    if model.family == "gemma3":
        norms |= {"attn_q_norm": model.head_size, "attn_k_norm": model.head_size}
        norms |= {"post_attention_norm": hidden, "post_ffw_norm": hidden}
    for layer in range(model.layers):
        for middle, shape in matrices.items():
            yield f"blk.{layer}.{middle}.weight", shape, model.types.get(middle, model.type)
        for middle, size in norms.items():
            yield f"blk.{layer}.{middle}.weight", (size,), "F32"
    yield "output_norm.weight", (hidden,), "F32"
    if not model.is_tied:
        yield "output.weight", (model.words, hidden), model.types.get("output", model.embedding_type)
    if model.rope_factors:
        yield "rope_freqs.weight", (model.head_size // 2,), "F32"


def _add_tensor(writer: GGUFWriter, model: TinyModel, name: str, shape: tuple[int, ...], kind: str) -> None:
    # A stream of its own for each tensor, so that a model of more layers begins with the same weights.
    random = np.random.default_rng([model.seed, zlib.crc32(name.encode())])
    if len(shape) == 1:
        writer.add_tensor(name, _vector(name, shape[0], random))
        return
    spread = {"output.weight": 3.0, "token_embd.weight": 0.5 if model.is_tied else 3.0}.get(name, 1.0)
    rows = min(shape[0], model.distinct_rows or shape[0])
    raw = random_matrix(kind, rows, shape[1], std=spread / shape[1] ** 0.5, random=random)
    raw = np.tile(raw, (-(-shape[0] // rows), 1))[: shape[0]] if rows < shape[0] else raw
    writer.add_tensor(name, raw, raw_shape=raw.shape, raw_dtype=GGMLQuantizationType[kind])


def _vector(name: str, size: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    if name == "rope_freqs.weight":
        return np.linspace(1, 8, size, dtype=np.float32)
    return (1 + 0.1 * random.standard_normal(size)).astype(np.float32)
