"""What a last stage answers: the payload of a CANDIDATES or LOGITS frame, written piece by piece as runs end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hyperlane.core import Row
from hyperlane.stage.buffers import as_bytes
from hyperlane.wire.candidates import answer_bytes, candidate_block

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class RunAnswer:
    """Candidates of a run's n wanted tokens: `logits` float32[n, K], `ids` int32[n, K], the others float32.

    `lse` and `lse_t` [n, 1]; `extra` [n, E]; K and E are the largest of the run's rows. `whole`: the logits
    [n, vocab], where they are asked for instead.
    """

    logits: Floats
    ids: npt.NDArray[np.int32]
    lse: Floats
    lse_t: Floats
    extra: Floats
    whole: Floats | None = None


class Place(NamedTuple):
    """The `number`-th wanted position of row `row` of the frame."""

    row: int
    number: int


class Answers:
    """The payload of one frame after another; its memory is kept and grows to the largest."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._memory = np.empty(0, np.uint8)
        self._rows: Sequence[Row] = ()
        self._starts: list[int] = []
        self._widths: list[int] = []
        self._bytes = 0

    def begin(self, rows: Sequence[Row]) -> None:
        """Prepare for the answers to these rows."""
        self._rows = rows
        self._starts, self._widths = [], []
        self._bytes = 0
        for row in rows:
            width = answer_bytes(row, self._vocab) if row.want else 0
            self._starts.append(self._bytes)
            self._widths.append(width)
            self._bytes += width * len(row.want)
        if self._bytes > self._memory.nbytes:
            self._memory = np.empty(self._bytes, np.uint8)

    def write(self, places: Sequence[Place], answer: RunAnswer) -> None:
        """Put a run's answers where they belong: answer i to wanted position `places[i]`."""
        if self._is_all(places):
            self._write_block(0, slice(0, len(places)), answer, self._rows[places[0].row])
            return
        for line, place in enumerate(places):
            row, width = self._rows[place.row], self._widths[place.row]
            start = self._starts[place.row] + place.number * width
            if answer.whole is not None:
                self._memory[start : start + width].view(np.float32)[:] = answer.whole[line]
            else:
                self._write_block(start, slice(line, line + 1), answer, row)

    def _is_all(self, places: Sequence[Place]) -> bool:
        """Whether these are all places of the frame, in their order and of one shape: the usual decode step."""
        first = self._rows[places[0].row]
        return (
            not first.whole_logits
            and len(places) * self._widths[places[0].row] == self._bytes
            and all(row.top_k == first.top_k and len(row.extra_ids) == len(first.extra_ids) for row in self._rows)
            and all(place < after for place, after in pairwise(places))
        )

    def _write_block(self, start: int, lines: slice, answer: RunAnswer, row: Row) -> None:
        """Put answers of one shape one after the other from byte `start` on."""
        top_k, extra = row.top_k, len(row.extra_ids)
        block = candidate_block(as_bytes(self._memory)[start:], lines.stop - lines.start, top_k, extra)
        block.lse[:], block.lse_t[:] = answer.lse[lines, 0], answer.lse_t[lines, 0]
        block.logits[:], block.ids[:] = answer.logits[lines, :top_k], answer.ids[lines, :top_k]
        if extra:
            block.extra[:] = answer.extra[lines, :extra]

    def payload(self) -> memoryview:
        """The whole payload of the frame; valid until `begin`."""
        return as_bytes(self._memory)[: self._bytes]
