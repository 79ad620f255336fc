"""`ByteTokenizer`: every byte is a token, so that a test can read token ids. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence

EOS = 256
"""The one token that is no byte."""

VOCAB = 257
"""256 bytes and `EOS`."""


class ByteTokenizer:
    """256 bytes, then one end-of-sequence token, which has no text."""

    vocab = VOCAB
    eos_ids = frozenset({EOS})

    def encode(self, text: str, *, add_bos: bool = False) -> tuple[int, ...]:
        """The UTF-8 bytes of the text."""
        return tuple(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of whole tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(token) for token in tokens).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """One byte, or none for `EOS`."""
        return bytes([token]) if token < EOS else b""
