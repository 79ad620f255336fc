"""Writes what a GGUF file holds as a checkpoint: config.json, tokenizer.json and F16 weights, as model hubs have them.

For tests and measurements where no checkpoint can be downloaded. Knows how both formats are written; of how Hyperlane
reads a checkpoint it knows nothing but the names of tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hyperlane.core import ModelFacts
from hyperlane.models.checkpoint_table import INDEX, SINGLE, stored_name
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.quant import dequantize
from hyperlane.models.quant_layout import unpermute_rows
from hyperlane.models.tokenizer_data import BYTE_LEVEL_BPE, TokenizerData, TokenType, read_tokenizer_data
from hyperlane.models.tokenizer_pre import split_rule

Floats = npt.NDArray[np.float32]


def write_checkpoint(gguf: Path, folder: Path, *, dtype: str = "F16", shards: int = 1) -> Path:
    """Write the model of a GGUF file into a folder, its weights dequantised, and return the folder.

    `dtype`: F32, F16 or BF16. `shards`: how many files the weights are spread over. The tokenizer's vocabulary must
    be byte-level BPE; without one, no tokenizer.json is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with GgufFile(gguf) as file:
        facts, tokenizer = read_facts(file), read_tokenizer_data(file)
        _write_json(folder / "config.json", _config(facts, tokenizer, dtype))
        _write_json(folder / "generation_config.json", {"eos_token_id": sorted(tokenizer.ends)})
        if tokenizer.model == BYTE_LEVEL_BPE:
            _write_json(folder / "tokenizer.json", tokenizer_json(tokenizer))
            _write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer))
        names = list(file.names())
        parts = [names[index::shards] for index in range(shards)]
        for index, part in enumerate(parts):
            weights = _Weights(file, facts, dtype, part)
            write_safetensors(folder / _shard(index, shards), weights.table(), weights.bytes())
        if shards > 1:
            places = {stored_name(n, facts.family): _shard(i, shards) for i, part in enumerate(parts) for n in part}
            _write_json(folder / INDEX, {"metadata": {}, "weight_map": places})
    return folder


def write_safetensors(
    path: Path, table: Mapping[str, tuple[str, Sequence[int], int]], contents: Iterable[bytes]
) -> None:
    """Write a file: by name type, shape and size of each tensor; their bytes in the same order."""
    header, end = {}, 0
    for name, (dtype, shape, nbytes) in table.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for content in contents:
            file.write(content)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Some tensors of a GGUF file as a checkpoint has them."""

    file: GgufFile
    facts: ModelFacts
    dtype: str
    names: Sequence[str]

    def table(self) -> dict[str, tuple[str, Sequence[int], int]]:
        """By the checkpoint's name: type, shape, bytes."""
        width = 4 if self.dtype == "F32" else 2
        infos = [self.file.info(name) for name in self.names]
        return {
            stored_name(info.name, self.facts.family): (self.dtype, info.shape, width * int(np.prod(info.shape)))
            for info in infos
            if info is not None
        }

    def bytes(self) -> Iterable[bytes]:
        """Their contents, one at a time."""
        for name in self.names:
            yield _encoded(self._values(name), self.dtype)

    def _values(self, name: str) -> Floats:
        info = self.file.info(name)
        assert info is not None
        values = dequantize(info, self.file.read(name))
        if values.ndim == 1:
            return values - np.float32(1) if self.facts.family == "gemma3" else values
        heads = {"attn_q": self.facts.heads, "attn_k": self.facts.kv_heads}.get(name.split(".")[-2], 0)
        return unpermute_rows(values, heads) if heads and self.facts.interleaved_heads else values


def _encoded(values: Floats, dtype: str) -> bytes:
    if dtype == "BF16":
        bits = values.view(np.uint32)
        # To nearest, ties to even: what is cut off decides, with the last kept bit.
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return values.astype("<f2" if dtype == "F16" else "<f4").tobytes()


def _shard(index: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{index + 1:05}-of-{count:05}.safetensors"


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _config(facts: ModelFacts, tokenizer: TokenizerData, dtype: str) -> dict[str, object]:
    torch = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": facts.hidden,
        "intermediate_size": facts.ffn,
        "num_hidden_layers": facts.layers,
        "num_attention_heads": facts.heads,
        "num_key_value_heads": facts.kv_heads,
        "head_dim": facts.head_dim,
        "vocab_size": facts.vocab,
        "max_position_embeddings": facts.context,
        "rms_norm_eps": facts.rms_eps,
        "rope_theta": facts.rope.theta,
        "tie_word_embeddings": facts.tied_output,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "torch_dtype": torch[dtype],
    }
    if facts.family == "gemma3":
        config |= {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "sliding_window": facts.window,
            "sliding_window_pattern": facts.global_every,
            "rope_local_base_freq": facts.rope_local.theta if facts.rope_local else 10_000.0,
            "query_pre_attn_scalar": facts.attention_scale**-2,
        }
    return config


def tokenizer_json(data: TokenizerData) -> dict[str, object]:
    """The tokenizer.json of a byte-level BPE vocabulary."""
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    rule = split_rule(data.pre)
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in rule.patterns
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": data.types[token] in special,
            }
            for token, text in enumerate(data.tokens)
            if data.types[token] in (*special, TokenType.USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "byte_fallback": False,
            "ignore_merges": rule.whole_words,
            "vocab": {text: token for token, text in enumerate(data.tokens)},
            "merges": list(data.merges),
        },
    }


def tokenizer_config(data: TokenizerData) -> dict[str, object]:
    """The tokenizer_config.json beside it."""
    named = {"bos": data.bos_id, "eos": data.eos_id, "unk": data.unk_id, "pad": data.pad_id}
    tokens = {f"{name}_token": data.tokens[token] for name, token in named.items() if token is not None}
    template = {"chat_template": data.chat_template} if data.chat_template else {}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": data.add_bos, **tokens, **template}
