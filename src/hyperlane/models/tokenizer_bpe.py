"""Byte-level BPE by the `tokenizers` library, set up from a vocabulary, its merges and a split rule.

Knows no special token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import models, pre_tokenizers

from hyperlane.errors import MalformedModel
from hyperlane.models.tokenizer_pre import SplitRule


class ByteLevelBpe:
    """Token ids of plain text, every byte of which is a character of the vocabulary's alphabet."""

    def __init__(self, tokens: Sequence[str], merges: Sequence[str], rule: SplitRule) -> None:
        """Build the merger.

        Raises:
            MalformedModel: a merge is not made of two tokens that join to a third.

        """
        vocabulary = {text: token for token, text in enumerate(tokens)}
        pairs = [_pair(merge, vocabulary) for merge in merges]
        model = models.BPE(vocabulary, pairs, ignore_merges=rule.whole_words)
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in rule.patterns),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def encode(self, text: str) -> list[int]:
        """The ids of a text that is not empty."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text_bytes(self, text: str) -> bytes:
        """The bytes that a normal token's text stands for."""
        return bytes_of(text)


def bytes_of(text: str) -> bytes:
    """The bytes that a text in the alphabet stands for; what is outside the alphabet stands for itself."""
    try:
        return text.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def _pair(merge: str, vocabulary: Mapping[str, int]) -> tuple[str, str]:
    # Checked here, since the library panics. The separator is never the first character: that may be a space itself.
    cut = merge.find(" ", 1)
    left, right = merge[:cut], merge[cut + 1 :]
    if cut < 0 or not (left in vocabulary and right in vocabulary and left + right in vocabulary):
        raise MalformedModel(f"the merge '{merge}' (tokenizer.ggml.merges) does not join two tokens to a third")
    return left, right


def _alphabet() -> dict[int, int]:
    """Code point of the alphabet → byte: printable Latin-1 characters are themselves, the rest come from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: byte for byte in printable} | {256 + index: byte for index, byte in enumerate(others)}


_BYTES = _alphabet()
