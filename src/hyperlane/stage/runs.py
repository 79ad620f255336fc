"""How the rows of a frame become runs of the engine. Pure.

GroupQueryAttention takes several tokens of a row that has a past only in a batch of one. So rows of several tokens
run one by one, in pieces; one-token rows run together, as ranges of slots, whose KV entries are contiguous. Slots
within a range that have no row are padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hyperlane.core import Row

MAX_WANTED = 32
"""Most positions that one run projects to the vocabulary: bounds the logits' memory."""

MAX_PADDING = 2
"""Most neighbouring slots that are padded rather than run apart: a run costs about as much as two more rows in one."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `offset` … of row `row` (its index in the frame), which begins at token `base` of the frame."""

    row: int
    base: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One token of each row in `rows` (indices in the frame), run as slots `first` … `first + size` − 1."""

    first: int
    size: int
    rows: tuple[int, ...]


def pieces(rows: Sequence[Row], run_tokens: int) -> Iterator[Piece]:
    """Every row of several tokens, in pieces of about equal size, none of one token.

    Attention over one token is other arithmetic, so that a piece of one would not give a longer piece's result.
    """
    base = 0
    for index, row in enumerate(rows):
        if row.count > 1:
            parts = max(-(-row.count // run_tokens), -(-len(row.want) // MAX_WANTED))
            parts = min(parts, row.count // 2)
            bounds = [row.count * part // parts for part in range(parts + 1)]
            for start, end in pairwise(bounds):
                yield Piece(index, base, start, end - start)
        base += row.count


def batches(rows: Sequence[Row]) -> Iterator[Batch]:
    """The one-token rows as few ranges of slots. No slot may have two rows in a frame."""
    by_slot = {row.slot: index for index, row in enumerate(rows) if row.count == 1}
    together: list[int] = []
    for slot in sorted(by_slot):
        if together and slot - together[-1] > MAX_PADDING + 1:
            yield _batch(together, by_slot)
            together = []
        together.append(slot)
    if together:
        yield _batch(together, by_slot)


def _batch(slots: Sequence[int], by_slot: Mapping[int, int]) -> Batch:
    return Batch(slots[0], slots[-1] - slots[0] + 1, tuple(by_slot[slot] for slot in slots))
