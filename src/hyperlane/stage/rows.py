"""What a stage knows of its slots, and whether a frame's rows fit them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hyperlane.core import Row, StageSpec
from hyperlane.errors import ProtocolError

FIRST = (0,)
"""What a decode row wants; within every row, since a row has a token."""


class SlotLengths:
    """How many KV entries of each slot are in use. A row at position 0 begins anew; overwriting shortens nothing."""

    def __init__(self, slots: int) -> None:
        self._lengths = [0] * slots

    def of(self, first: int, count: int) -> list[int]:
        """The lengths of a range of slots."""
        return self._lengths[first : first + count]

    def __getitem__(self, slot: int) -> int:
        return self._lengths[slot]

    def written(self, slot: int, start: int, end: int) -> None:
        """Entries `start` … `end` − 1 of a slot were written."""
        lengths = self._lengths
        if start == 0 or end > lengths[slot]:
            lengths[slot] = end

    def copied(self, source: int, destination: int, count: int) -> None:
        """The first `count` entries were copied to another slot.

        Raises:
            ProtocolError: a slot is out of range, or the source does not have so many.

        """
        slots = len(self._lengths)
        if not (0 <= source < slots and 0 <= destination < slots):
            raise ProtocolError(f"COPY from slot {source} to {destination}, where there are {slots} slots")
        if not 0 <= count <= self[source]:
            raise ProtocolError(f"COPY of {count} entries of slot {source}, which has {self[source]}")
        self._lengths[destination] = count


def check_rows(rows: Sequence[Row], spec: StageSpec, lengths: SlotLengths) -> None:
    """Refuse rows that the stage has no room for.

    Raises:
        ProtocolError: the message says which row and why.

    """
    check_size(rows, spec)
    if len({row.slot for row in rows}) < len(rows):
        raise ProtocolError("two rows of a frame have the same slot")
    for row in rows:
        _check_row(row, spec, lengths)


def check_size(rows: Sequence[Row], spec: StageSpec) -> None:
    """Refuse what the stage's buffers do not hold.

    Raises:
        ProtocolError: there are no rows, or more tokens than fit.

    """
    tokens = sum(row.count for row in rows)
    if not rows or tokens > spec.max_step_tokens:
        raise ProtocolError(f"a frame of {len(rows)} rows and {tokens} tokens; at most {spec.max_step_tokens} fit")


def _check_row(row: Row, spec: StageSpec, lengths: SlotLengths) -> None:
    if not 0 <= row.slot < spec.slots:
        raise ProtocolError(f"slot {row.slot}, where there are {spec.slots} slots")
    if row.count < 1 or row.start < 0 or row.start + row.count > spec.context:
        raise ProtocolError(f"{row.count} tokens at position {row.start}, where a slot holds {spec.context}")
    if row.start > lengths[row.slot]:
        raise ProtocolError(f"slot {row.slot} goes on at {row.start}, but has {lengths[row.slot]} entries")
    if row.want and row.want != FIRST and not _ascend(row.want, row.count):
        raise ProtocolError(f"wanted offsets {row.want[:8]} are not ascending within {row.count} tokens")
    if row.want and spec.is_last:
        _check_question(row, spec)


def _ascend(offsets: Sequence[int], count: int) -> bool:
    return all(0 <= offset < count for offset in offsets) and list(offsets) == sorted(set(offsets))


def _check_question(row: Row, spec: StageSpec) -> None:
    vocab = spec.model.vocab
    if not 1 <= row.top_k <= vocab:
        raise ProtocolError(f"{row.top_k} candidates of a vocabulary of {vocab}")
    if not row.temperature > 0:
        raise ProtocolError(f"temperature {row.temperature} of candidates; greedy rows say 1")
    if row.extra_ids and not all(0 <= token < vocab for token in row.extra_ids):
        raise ProtocolError(f"extra ids {row.extra_ids[:8]} are not within a vocabulary of {vocab}")
