"""SentencePiece vocabularies with scores: adjacent pieces are merged, best score first. Knows no special token.

Written out rather than handed to the `tokenizers` library: that wants every merge spelled out, half a million for
Gemma, which takes seconds and 250 MB at every start, and it orders equal scores differently. Words repeat, so they
are remembered, and a vocabulary needs no preparation but a dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""Stands for a space in such vocabularies."""

_REMEMBERED_WORDS = 1 << 16
_REMEMBERED_LENGTH = 64


class ScoredPieces:
    """Token ids of plain text. `byte_tokens`: 256 ids for what has no piece, or fewer, then `unk` or nothing stands."""

    def __init__(self, tokens: Sequence[str], scores: Sequence[float], unk: int | None) -> None:
        self._vocabulary = {text: token for token, text in enumerate(tokens)}
        self._scores = scores
        self._bytes = [self._byte_token(value, unk) for value in range(256)]
        self._between_words = _word_boundary(tokens)
        self._remembered = lru_cache(_REMEMBERED_WORDS)(self._encode_word)

    def encode(self, text: str) -> list[int]:
        """The ids of a text that is not empty."""
        ids: list[int] = []
        for word in self._between_words.split(text.replace(" ", SPACE)):
            ids += self._remembered(word) if len(word) <= _REMEMBERED_LENGTH else self._encode_word(word)
        return ids

    def text_bytes(self, text: str) -> bytes:
        """The bytes that a normal token's text stands for."""
        return text.replace(SPACE, " ").encode()

    def _byte_token(self, value: int, unk: int | None) -> int | None:
        return self._vocabulary.get(f"<0x{value:02X}>", unk)

    def _encode_word(self, word: str) -> list[int]:
        pieces = _merge(word, self._vocabulary, self._scores) if len(word) > 1 else [word]
        ids: list[int] = []
        for piece in pieces:
            token = self._vocabulary.get(piece)
            if token is not None:
                ids.append(token)
            else:
                ids += [known for value in piece.encode() if (known := self._bytes[value]) is not None]
        return ids


def _word_boundary(tokens: Sequence[str]) -> re.Pattern[str]:
    """Where a text may be cut without changing its tokens: before a space after a character that no token has there.

    No merge crosses such a place, since it would make a token with that pair of characters inside.
    """
    joined = set(re.findall(f"[^{SPACE}\0](?={SPACE})", "\0".join(tokens)))
    return re.compile(f"(?<=[^{SPACE}{re.escape(''.join(sorted(joined)))}])(?={SPACE})")


def _merge(word: str, vocabulary: dict[str, int], scores: Sequence[float]) -> list[str]:
    """Merge the adjacent pair whose joined text has the best score, the leftmost of equals, until none is a token.

    A piece is named by where it begins; `end[piece]` is where it ends, which is also the name of the next one.
    """
    length = len(word)
    end = list(range(1, length + 1))
    before = list(range(-1, length - 1))

    def candidate(left: int) -> tuple[float, int, int, int] | None:
        right = end[left]
        if right == length:
            return None
        token = vocabulary.get(word[left : end[right]])
        return None if token is None else (-scores[token], left, right, end[right])

    queue = [found for left in range(length - 1) if (found := candidate(left)) is not None]
    heapify(queue)
    while queue:
        _, left, right, stop = heappop(queue)
        if end[left] != right or end[right] != stop:
            continue  # one of the two has been merged since
        end[left], end[right] = stop, -1
        if stop < length:
            before[stop] = left
        for changed in (left, before[left]):
            if changed >= 0 and (found := candidate(changed)) is not None:
                heappush(queue, found)
    pieces, at = [], 0
    while at < length:
        pieces.append(word[at : end[at]])
        at = end[at]
    return pieces
