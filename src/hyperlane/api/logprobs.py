"""Log-probabilities in the two shapes that clients read: chat's list of objects, and the older parallel lists."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from hyperlane.api.chunks import JsonObject
from hyperlane.core import TokenChoice, TokenLogprob

LOWEST = -9999.0
"""What stands for a probability of 0, as JSON has no infinity."""


def chat_logprobs(choices: Iterable[TokenChoice]) -> JsonObject:
    """The `logprobs` object of a chat choice or chunk."""
    content = [
        {**_entry(choice.chosen), "top_logprobs": [_entry(alternative) for alternative in choice.top]}
        for choice in choices
    ]
    return {"content": content, "refusal": None}


def _entry(token: TokenLogprob) -> dict[str, object]:
    text = token.text.decode(errors="replace")
    return {"token": text, "logprob": max(token.logprob, LOWEST), "bytes": list(token.text)}


class TextLogprobs:
    """The `logprobs` objects of one completion choice, chunk after chunk.

    `text_offset` counts characters from the start of the choice's text.
    """

    def __init__(self, alternatives: int) -> None:
        self._alternatives = alternatives
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, choices: Iterable[TokenChoice]) -> JsonObject:
        """The object for the next tokens."""
        tokens: list[str] = []
        token_logprobs: list[float] = []
        tops: list[dict[str, float]] = []
        offsets: list[int] = []
        for choice in choices:
            tokens.append(_name(choice.chosen.text))
            token_logprobs.append(max(choice.chosen.logprob, LOWEST))
            tops.append({_name(top.text): max(top.logprob, LOWEST) for top in choice.top})
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(choice.chosen.text))
        return {
            "tokens": tokens,
            "token_logprobs": token_logprobs,
            "top_logprobs": tops if self._alternatives else None,
            "text_offset": offsets,
        }


def _name(text: bytes) -> str:
    """A token's text, or its bytes in hexadecimal where they are no text: two tokens must not get one name."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)
