"""The payload of CANDIDATES and LOGITS frames: what the last stage writes and the head reads. Layout only, no sampling.

For each wanted position of each row, in frame order, 32-bit little-endian words: log-sum-exp of the logits,
log-sum-exp of logits / temperature, K logits (descending), K token ids, E logits of the row's extra ids.
A row with `whole_logits` has instead the V logits of the whole vocabulary for each wanted position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hyperlane.core import Row
from hyperlane.errors import ProtocolError
from hyperlane.wire.kind import Buffer

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

WORD = 4
_F32 = np.dtype("<f4")
_I32 = np.dtype("<i4")


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What the last stage says of one position. `ids` int32[K] and `logits` float32[K], largest first.

    `lse`: log-sum-exp over the whole vocabulary; `lse_t`: the same of logits / the row's temperature.
    `extra`: float32[E], the logits of the row's extra ids, in the row's order.
    """

    ids: Ids
    logits: Floats
    lse: float
    lse_t: float
    extra: Floats


class CandidateBlock(NamedTuple):
    """Strided views into a payload of n positions that all have K candidates and E extra ids: written by engines.

    `lse` and `lse_t` float32[n], `logits` float32[n, K], `ids` int32[n, K], `extra` float32[n, E].
    """

    lse: Floats
    lse_t: Floats
    logits: Floats
    ids: Ids
    extra: Floats


def candidates_bytes(rows: Sequence[Row], vocab: int) -> int:
    """Bytes of the payload that answers these rows; 0 when nothing is wanted."""
    words = 0
    for row in rows:
        if row.want:
            words += len(row.want) * (vocab if row.whole_logits else 2 + 2 * row.top_k + len(row.extra_ids))
    return WORD * words


def candidate_block(buffer: memoryview, positions: int, top_k: int, extra: int) -> CandidateBlock:
    """Views into writable bytes that begin with `positions` answers of one shape; writing to them fills the bytes."""
    width = 2 + 2 * top_k + extra
    table = np.frombuffer(buffer, _F32, positions * width).reshape(positions, width)
    ids = table[:, 2 + top_k : 2 + 2 * top_k].view(_I32)
    return CandidateBlock(table[:, 0], table[:, 1], table[:, 2 : 2 + top_k], ids, table[:, 2 + 2 * top_k :])


def split(rows: Sequence[Row], payload: Buffer, vocab: int) -> list[list[Candidates | Floats]]:
    """For each row its answers, one for each wanted position: `Candidates`, or float32[V] for `whole_logits`.

    The arrays are views into the payload.

    Raises:
        ProtocolError: the payload is not exactly as long as these rows make it.

    """
    words = np.frombuffer(payload, _F32)
    if words.nbytes != candidates_bytes(rows, vocab):
        raise ProtocolError(f"a payload of {words.nbytes} bytes, where the rows make {candidates_bytes(rows, vocab)}")
    ids = words.view(_I32)
    answers: list[list[Candidates | Floats]] = []
    at = 0
    for row in rows:
        width = vocab if row.whole_logits else 2 + 2 * row.top_k + len(row.extra_ids)
        answer: list[Candidates | Floats] = []
        for _ in row.want:
            answer.append(words[at : at + width] if row.whole_logits else _read(words, ids, at, row.top_k, width))
            at += width
        answers.append(answer)
    return answers


def _read(words: Floats, ids: Ids, at: int, top_k: int, width: int) -> Candidates:
    first, middle, last = at + 2, at + 2 + top_k, at + 2 + 2 * top_k
    return Candidates(
        ids[middle:last], words[first:middle], float(words[at]), float(words[at + 1]), words[last : at + width]
    )


def join(answers: Sequence[Sequence[Candidates | Floats]]) -> bytes:
    """The payload that `split` takes apart: for engines that hold one answer at a time, and for tests."""
    parts: list[bytes] = []
    for answer in (one for row in answers for one in row):
        if isinstance(answer, Candidates):
            parts.append(np.array([answer.lse, answer.lse_t], _F32).tobytes())
            parts.append(answer.logits.astype(_F32).tobytes())
            parts.append(answer.ids.astype(_I32).tobytes())
            parts.append(answer.extra.astype(_F32).tobytes())
        else:
            parts.append(answer.astype(_F32).tobytes())
    return b"".join(parts)
