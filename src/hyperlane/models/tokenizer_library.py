"""A vocabulary that the `tokenizers` library runs as tokenizer.json describes it. Knows no special token."""

from __future__ import annotations

import tokenizers

from hyperlane.errors import MalformedModel
from hyperlane.models.tokenizer_bpe import bytes_of
from hyperlane.models.tokenizer_spm import SPACE


class LibraryVocabulary:
    """Token ids of plain text."""

    def __init__(self, description: str, *, byte_level: bool) -> None:
        """Set the library up.

        Args:
            description: a tokenizer.json without added tokens and post-processor.
            byte_level: tokens are written in the alphabet of byte-level BPE, else with U+2581 for a space.

        Raises:
            MalformedModel: the library refuses the description.

        """
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(description)
        except Exception as error:  # the library raises nothing more special
            raise MalformedModel(f"the tokenizers library refuses tokenizer.json: {error}") from error
        self._byte_level = byte_level

    def encode(self, text: str) -> list[int]:
        """The ids of a text that is not empty."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text_bytes(self, text: str) -> bytes:
        """The bytes that a normal token's text stands for."""
        return bytes_of(text) if self._byte_level else text.replace(SPACE, " ").encode()
