"""How the rows of a frame become runs of the engine. Pure.

GroupQueryAttention takes several tokens of a row that has a past only in a batch of one. So rows of several tokens
run one by one, in pieces; one-token rows run together, as ranges of slots, whose KV entries are contiguous. Slots
within a range that have no row are padded. A row whose tokens are to be taken one by one runs in pieces of some tokens
where the engine has a graph for that, else each token by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hyperlane.core import ModelFacts, Row

RUN_TOKENS = 64
"""Tokens of a row that are computed at a time: enough for full speed, few enough for a small workspace."""

MAX_WANTED = 32
"""Most positions that one run projects to the vocabulary: bounds the logits' memory."""

MAX_PADDING = 2
"""Most neighbouring slots that are padded rather than run apart: a run costs about as much as two more rows in one."""


def run_tokens(facts: ModelFacts) -> int:
    """Where rows of several tokens are cut: at multiples of this.

    ONNX Runtime's attention takes queries in blocks of at most twice the head's values, and a block of one query is
    other arithmetic: so no run is longer than a block. Scores of wide heads are rounded otherwise where there are at
    most 64 entries to score (in a KV block, or in all): cut at 64, a position is always computed the same way.
    """
    return min(RUN_TOKENS, 2 * facts.head_dim)


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `offset` … of row `row` (its index in the frame), which begins at token `base` of the frame.

    `count` of them count; `run` are computed: where that is more, the last are stand-ins, behind what the slot holds.
    `singly`: each as a row of one token would be.
    """

    row: int
    base: int
    offset: int
    count: int
    run: int
    singly: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """One token of each row in `rows` (indices in the frame), run as slots `first` … `first + size` − 1."""

    first: int
    size: int
    rows: tuple[int, ...]


def pieces(rows: Sequence[Row], run_tokens: int, singles: int = 1) -> Iterator[Piece]:
    """Every row of several tokens in pieces that end at multiples of `run_tokens`, counted in the sequence.

    So a position is computed by the same arithmetic however a prompt was cut into frames. Attention over one token is
    other arithmetic than over two, so a piece of one token has a stand-in beside it.

    `singles`: how many tokens of a row that is taken one by one share a run.
    """
    base = 0
    for index, row in enumerate(rows):
        if row.one_by_one:
            yield from _singles(row, index, base, singles)
        elif row.count > 1:
            for start, end in pairwise(_cuts(row, run_tokens)):
                count = end - start
                yield Piece(index, base, start, count, max(count, 2))
        base += row.count


def _singles(row: Row, index: int, base: int, most: int) -> Iterator[Piece]:
    """Runs of `most` tokens. A rest is filled up with stand-ins, or, where it is small, each token is a run."""
    offset = 0
    while offset < row.count:
        left = row.count - offset
        run = most if left > most // 2 else 1
        yield Piece(index, base, offset, min(left, run), run, singly=True)
        offset += run


def _cuts(row: Row, run_tokens: int) -> list[int]:
    """Offsets between which a row's pieces lie; a piece has at most MAX_WANTED wanted positions."""
    first = run_tokens - row.start % run_tokens
    cuts = [0, *range(first, row.count, run_tokens), row.count]
    crowded = [row.want[i] for i in range(MAX_WANTED, len(row.want), MAX_WANTED)]
    return sorted({*cuts, *crowded})


def batches(rows: Sequence[Row], *, alone: bool = False) -> Iterator[Batch]:
    """The one-token rows as few ranges of slots; each `alone` if so. No slot may have two rows in a frame."""
    by_slot = {row.slot: index for index, row in enumerate(rows) if row.count == 1}
    if alone:
        yield from (_batch([slot], by_slot) for slot in sorted(by_slot))
        return
    together: list[int] = []
    for slot in sorted(by_slot):
        if together and slot - together[-1] > MAX_PADDING + 1:
            yield _batch(together, by_slot)
            together = []
        together.append(slot)
    if together:
        yield _batch(together, by_slot)


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of a frame, in their order: pieces, then `both`, then batches.

    `both`: a batch and a prompt's piece in one run.
    """

    pieces: Sequence[Piece]
    both: tuple[Batch, Piece] | None
    batches: Sequence[Batch]


def arrange(rows: Sequence[Row], run_tokens: int, *, singles: int = 1, alone: bool = False, beside: bool) -> Runs:
    """The runs of a frame. `beside`: one of them may take the largest batch and a prompt's last piece."""
    one_by_one, several = list(batches(rows, alone=alone)), list(pieces(rows, run_tokens, singles))
    of_prompts = [piece for piece in several if not piece.singly]
    if not (beside and one_by_one and of_prompts):
        return Runs(several, None, one_by_one)
    batch, piece = max(one_by_one, key=lambda one: one.size), of_prompts[-1]
    one_by_one.remove(batch)
    several.remove(piece)
    return Runs(several, (batch, piece), one_by_one)


def bucket(first: int, size: int, slots: int, least: int = 1) -> tuple[int, int]:
    """First slot and size of the smallest aligned power-of-two range around a range, cut off at `slots`.

    `least`: its size, at least; a power of two.

    So a device that replays what it captured for a range of slots has at most 2 · `slots` of them to keep.
    """
    width = least
    while first // width != (first + size - 1) // width:
        width *= 2
    begin = first // width * width
    return begin, min(width, slots - begin)


def _batch(slots: Sequence[int], by_slot: Mapping[int, int]) -> Batch:
    return Batch(slots[0], slots[-1] - slots[0] + 1, tuple(by_slot[slot] for slot in slots))
