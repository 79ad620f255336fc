"""What a last stage answers: the payload of a CANDIDATES or LOGITS frame, written piece by piece as runs end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hyperlane.core import Row
from hyperlane.stage.buffers import as_bytes
from hyperlane.wire.candidates import candidate_block, candidates_bytes

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
            size = candidates_bytes((row,), self._vocab)
            self._starts.append(self._bytes)
            self._widths.append(size // len(row.want) if row.want else 0)
            self._bytes += size
        if self._bytes > self._memory.nbytes:
            self._memory = np.empty(self._bytes, np.uint8)

    def write(self, row: int, wanted: int, at: int, answer: RunAnswer) -> None:
        """Put answer `at` of a run where that to the row's `wanted`-th wanted position lies."""
        asked = self._rows[row]
        start = self._starts[row] + wanted * self._widths[row]
        if answer.whole is not None:
            self._memory[start : start + self._widths[row]].view(np.float32)[:] = answer.whole[at]
            return
        extra = len(asked.extra_ids)
        block = candidate_block(as_bytes(self._memory)[start:], 1, asked.top_k, extra)
        block.lse[0], block.lse_t[0] = answer.lse[at, 0], answer.lse_t[at, 0]
        block.logits[0], block.ids[0] = answer.logits[at, : asked.top_k], answer.ids[at, : asked.top_k]
        if extra:
            block.extra[0] = answer.extra[at, :extra]

    def payload(self) -> memoryview:
        """The whole payload of the frame; valid until `begin`."""
        return as_bytes(self._memory)[: self._bytes]
