"""`Tokenizer`: text to token ids and back as the model file's own metadata says; `Detokenizer`: the way back, streamed.

Knows special tokens and BOS rules; the two kinds of vocabulary are modules of their own. Knows no conversation.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Protocol

from hyperlane.models.tokenizer_bpe import ByteLevelBpe
from hyperlane.models.tokenizer_data import (
    BYTE_LEVEL_BPE,
    Metadata,
    TokenizerData,
    TokenType,
    read_tokenizer_data,
)
from hyperlane.models.tokenizer_library import LibraryVocabulary
from hyperlane.models.tokenizer_pre import split_rule
from hyperlane.models.tokenizer_special import LiteralTokens
from hyperlane.models.tokenizer_spm import ScoredPieces

_SILENT = frozenset({TokenType.CONTROL, TokenType.UNKNOWN})


class Vocabulary(Protocol):
    """What the two kinds of vocabulary have in common."""

    def encode(self, text: str) -> list[int]: ...

    def text_bytes(self, text: str) -> bytes: ...


class Tokenizer:
    """The tokenizer of one model. Thread-safe.

    `eos_ids`: every token that ends an answer. `bos_id`: None for a model without. `add_bos`: whether a text that
    is given to the model begins with it. `control`: the tokens of two characters or more that only `parse_special`
    finds in a text.
    """

    def __init__(self, data: TokenizerData) -> None:
        """Set the vocabulary up.

        Raises:
            UnsupportedModel: the vocabulary's split rule is unknown.
            MalformedModel: its merges do not fit it.

        """
        self.vocab_size = len(data.tokens)
        self.eos_ids = data.ends
        self.bos_id = data.bos_id
        self.eos_id = data.eos_id
        self.unk_id = data.unk_id
        self.pad_id = data.pad_id
        self.add_bos = data.add_bos
        self.add_space_prefix = data.add_space_prefix
        self.chat_template = data.chat_template
        self._data = data
        self._vocabulary = _vocabulary(data)
        self._inside = _library(data, data.library_inside) if data.library_inside else self._vocabulary
        self._prefix = " " if data.add_space_prefix and not data.library else ""
        self._user_defined = _literals(data, {TokenType.USER_DEFINED})
        self._special = _literals(data, {TokenType.USER_DEFINED, *_SILENT})
        self.control = _literals(data, _SILENT, shortest=2)
        self.pieces = _Pieces(data, self._vocabulary)

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Tokenizer:
        """The tokenizer that a model file describes.

        Raises:
            UnsupportedModel: a tokenizer or pre-tokenizer that Hyperlane does not run.
            MalformedModel: the vocabulary is missing or inconsistent.

        """
        return cls(read_tokenizer_data(metadata))

    def encode(self, text: str, *, parse_special: bool = False, add_bos: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            text: any string; half surrogates become U+FFFD.
            parse_special: whether control tokens written in the text, as `<|im_end|>`, are those tokens. Never say
                so for a text that a user wrote.
            add_bos: begin with BOS if the model's rule says so (`Tokenizer.add_bos`).

        """
        fragments = self._special.split(text) if parse_special else [text]
        return self.encode_fragments(fragments, add_bos=add_bos)

    def encode_fragments(self, fragments: Iterable[str | int], *, add_bos: bool = False) -> list[int]:
        """Token ids of plain strings and, between them, tokens that are already known.

        Strings next to each other are one text, so where one ends does not show in the tokens. BOS is not doubled
        when the first fragment is that.
        """
        ids = self._encode_fragments(self._plain(fragments))
        if add_bos and self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of whole tokens from a text's beginning; bytes that are not UTF-8 become U+FFFD."""
        detokenizer = Detokenizer(self, at_text_start=True)
        return "".join(map(detokenizer.push, tokens)) + detokenizer.flush()

    def token_bytes(self, token: int) -> bytes:
        """The bytes of the text that a token stands for: none for control tokens and ids beyond the vocabulary."""
        return self.pieces[token]

    def token_text(self, token: int | None) -> str:
        """A token as the vocabulary writes it, `<|im_end|>` for instance; empty for None."""
        return "" if token is None else self._data.tokens[token]

    def _plain(self, fragments: Iterable[str | int]) -> Iterator[str | int]:
        """Whole texts without the user-defined tokens that are in them, those and the given tokens between."""
        for is_text, run in groupby(fragments, lambda fragment: isinstance(fragment, str)):
            if is_text:
                yield from self._user_defined.split(_whole_characters("".join(map(str, run))))
            else:
                yield from run

    def _encode_fragments(self, fragments: Iterable[str | int]) -> list[int]:
        ids: list[int] = []
        after_special = True
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                vocabulary = self._inside if ids else self._vocabulary
                ids += vocabulary.encode(self._prefix + fragment if after_special else fragment)
            after_special = isinstance(fragment, int)
        return ids


class Detokenizer:
    """Text of one sequence of tokens, piece by piece, never half a character.

    `at_text_start`: the sequence is a whole text, so that the space which some SentencePiece vocabularies put before
    a text is taken away again. A continuation, as an answer after its prompt, leaves it there.
    """

    __slots__ = ("_decode", "_pieces", "_strip")

    def __init__(self, tokenizer: Tokenizer, *, at_text_start: bool = False) -> None:
        self._pieces = tokenizer.pieces
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._strip = at_text_start and tokenizer.add_space_prefix

    def push(self, token: int) -> str:
        """The text that is certain now. Bytes that cannot become a character any more are U+FFFD at once."""
        text = self._decode(self._pieces[token])
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        """The end: a character that was begun and not finished becomes U+FFFD. The detokenizer starts afresh."""
        return self._decode(b"", True)


class _Pieces(dict[int, bytes]):
    """Token id → bytes, made when first asked for: a vocabulary has 10^5 words and an answer uses few."""

    def __init__(self, data: TokenizerData, vocabulary: Vocabulary) -> None:
        super().__init__()
        self._data = data
        self._vocabulary = vocabulary

    def __missing__(self, token: int) -> bytes:
        self[token] = piece = self._bytes(token)
        return piece

    def _bytes(self, token: int) -> bytes:
        if not 0 <= token < len(self._data.tokens) or self._data.types[token] in _SILENT:
            return b""
        text, kind = self._data.tokens[token], self._data.types[token]
        if kind == TokenType.BYTE and len(text) == len("<0x00>"):
            return bytes.fromhex(text[3:5])
        return text.encode() if kind == TokenType.USER_DEFINED else self._vocabulary.text_bytes(text)


def _vocabulary(data: TokenizerData) -> Vocabulary:
    if data.library:
        return _library(data, data.library)
    if data.model == BYTE_LEVEL_BPE:
        return ByteLevelBpe(data.tokens, data.merges, split_rule(data.pre))
    return ScoredPieces(data.tokens, data.scores or [0.0] * len(data.tokens), data.unk_id)


def _library(data: TokenizerData, description: str) -> Vocabulary:
    return LibraryVocabulary(description, byte_level=data.model == BYTE_LEVEL_BPE)


def _literals(data: TokenizerData, kinds: Iterable[int], shortest: int = 1) -> LiteralTokens:
    wanted = frozenset(kinds)
    found = (token for token, kind in enumerate(data.types) if kind in wanted)
    return LiteralTokens({data.tokens[token]: token for token in found if len(data.tokens[token]) >= shortest})


def _whole_characters(text: str) -> str:
    """The text without half surrogates, which JSON can carry and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
