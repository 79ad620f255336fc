"""`TokenizerData`: what a GGUF file's metadata says of its tokenizer, checked, as plain data. Tokenizes nothing."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from hyperlane.errors import MalformedModel, UnsupportedModel

BYTE_LEVEL_BPE = "gpt2"
"""The `tokenizer.ggml.model` of byte-level BPE, whatever the family (Llama 3, Qwen, SmolLM, …)."""

SENTENCEPIECE = "llama"
"""The `tokenizer.ggml.model` of SentencePiece-like vocabularies with scores (Llama 2, Gemma, …)."""

_BOS_BY_DEFAULT = frozenset({"llama3", "llama-v3", "llama-bpe", "pixtral", "falcon3", "lfm2", "tekken"})

_END_NAMES = frozenset(
    {
        "<eos>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<end_of_turn>",
        "<turn|>",
        "<EOT>",
        "<|return|>",
        "<|call|>",
        "<end_of_utterance>",
        "<｜end▁of▁sentence｜>",
    }
)
"""Tokens that end a turn wherever they occur; files name only one or two of theirs by id."""

_CONTROL_NAMES = _END_NAMES | {"</s>"}
_FILL_IN_THE_MIDDLE = re.compile(r"<\|?fim[-_](prefix|suffix|middle|pad|repo)\|?>|<\|(repo_name|file_sep)\|>")


_Number = TypeVar("_Number", int, float)


class TokenType(enum.IntEnum):
    """The numbers of `tokenizer.ggml.token_type`.

    User-defined tokens are found in any text; control and unknown ones only where special tokens are parsed.
    """

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Metadata(Protocol):
    """The part of a file's metadata reader that a tokenizer needs. Every accessor: None when the key is missing."""

    def string(self, key: str) -> str | None: ...

    def integer(self, key: str) -> int | None: ...

    def boolean(self, key: str) -> bool | None: ...

    def strings(self, key: str) -> Sequence[str] | None: ...

    def integers(self, key: str) -> Sequence[int] | None: ...

    def floats(self, key: str) -> Sequence[float] | None: ...


@dataclass(frozen=True, slots=True)
class TokenizerData:
    """A vocabulary and its rules. `tokens`, `types` and, where given, `scores` are indexed by token id.

    `model`: `gpt2` or `llama`. `pre`: the name of a byte-level BPE's split rule. `merges`: "left right", best first.
    `ends`: every token that ends a turn. `add_space_prefix`: a text begins as if a space stood before it.
    `library`: how the `tokenizers` library runs the vocabulary, in place of `pre`, `merges` and `scores`; it adds that
    space itself. `library_inside`: the same for a text behind a special token, where that differs.
    """

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    pre: str = "default"
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    ends: frozenset[int] = frozenset()
    add_bos: bool = False
    add_space_prefix: bool = False
    chat_template: str | None = None
    library: str = ""
    library_inside: str = ""


def read_tokenizer_data(metadata: Metadata) -> TokenizerData:
    """The tokenizer that a model file describes.

    Raises:
        UnsupportedModel: a kind of tokenizer that Hyperlane does not run.
        MalformedModel: the vocabulary is missing or inconsistent.

    """
    model = _required_model(metadata)
    tokens = metadata.strings("tokenizer.ggml.tokens")
    if not tokens:
        raise MalformedModel("the model file holds no vocabulary (tokenizer.ggml.tokens)")
    declared = _column(metadata.integers("tokenizer.ggml.token_type"), len(tokens), "token_type")
    types = corrected_types(tokens, declared or [TokenType.NORMAL] * len(tokens))
    pre = metadata.string("tokenizer.ggml.pre") or "default"
    pieces = model == SENTENCEPIECE
    ids = {
        name: _special_id(metadata, name, len(tokens), default if pieces else None)
        for name, default in (("bos", 1), ("eos", 2), ("unknown", 0), ("padding", None), ("eot", None), ("eom", None))
    }
    return TokenizerData(
        model=model,
        tokens=tokens,
        types=types,
        pre=pre,
        merges=metadata.strings("tokenizer.ggml.merges") or (),
        scores=_column(metadata.floats("tokenizer.ggml.scores"), len(tokens), "scores") if pieces else (),
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        unk_id=ids["unknown"],
        pad_id=ids["padding"],
        ends=ends_of(tokens, declared, (ids["eos"], ids["eot"], ids["eom"])),
        add_bos=_flag(metadata, "add_bos_token", pieces or pre in _BOS_BY_DEFAULT) and ids["bos"] is not None,
        add_space_prefix=_flag(metadata, "add_space_prefix", pieces) and pieces,
        chat_template=metadata.string("tokenizer.chat_template"),
    )


def _required_model(metadata: Metadata) -> str:
    model = metadata.string("tokenizer.ggml.model")
    if model is None:
        raise MalformedModel("the model file describes no tokenizer (tokenizer.ggml.model)")
    if model not in (BYTE_LEVEL_BPE, SENTENCEPIECE):
        raise UnsupportedModel(
            f"the model's tokenizer is of kind '{model}'; "
            f"Hyperlane runs '{BYTE_LEVEL_BPE}' (byte-level BPE) and '{SENTENCEPIECE}' (SentencePiece)"
        )
    return model


def _column(values: Sequence[_Number] | None, count: int, name: str) -> Sequence[_Number]:
    if values is None:
        return ()
    if len(values) != count:
        raise MalformedModel(f"tokenizer.ggml.{name} has {len(values)} entries for a vocabulary of {count}")
    return values


def _special_id(metadata: Metadata, name: str, count: int, default: int | None) -> int | None:
    """A special token's id. One outside the vocabulary counts as none: converters write such for 'has no BOS'."""
    found = metadata.integer(f"tokenizer.ggml.{name}_token_id")
    token = default if found is None else found
    return token if token is not None and 0 <= token < count else None


def _flag(metadata: Metadata, name: str, default: bool) -> bool:
    found = metadata.boolean(f"tokenizer.ggml.{name}")
    return default if found is None else found


def corrected_types(tokens: Sequence[str], declared: Sequence[int]) -> Sequence[int]:
    """Some files declare tokens that end a turn as user-defined; parsed in plain text, a user could end turns."""
    types = list(declared)
    for token, kind in enumerate(declared):
        if kind == TokenType.USER_DEFINED and _is_control_name(tokens[token]):
            types[token] = TokenType.CONTROL
    return types


def _is_control_name(text: str) -> bool:
    return text in _CONTROL_NAMES or _FILL_IN_THE_MIDDLE.fullmatch(text) is not None


def ends_of(tokens: Sequence[str], declared: Sequence[int], named: Sequence[int | None]) -> frozenset[int]:
    """Every token that ends a turn. `</s>` is one only where it is declared control: in Gemma it is an HTML tag."""
    special = (TokenType.CONTROL, TokenType.USER_DEFINED)
    found: Mapping[str, int] = {
        tokens[token]: token
        for token, kind in enumerate(declared)
        if (kind in special and tokens[token] in _END_NAMES) or (kind == TokenType.CONTROL and tokens[token] == "</s>")
    }
    ends = set(found.values()) | {token for token in named if token is not None}
    if "<|return|>" in found and "<|call|>" in found:
        ends.discard(found.get("<|end|>", -1))  # there it ends one of several messages of the same turn
    return frozenset(ends)
