"""The payload of CANDIDATES and LOGITS frames: what the last stage writes and the head reads. Layout only, no sampling.

For each wanted position of each row, in frame order, 32-bit little-endian words: log-sum-exp of the logits,
log-sum-exp of logits / temperature, K logits (descending), K token ids, E logits of the row's extra ids.
A row with `whole_logits` has instead the V logits of the whole vocabulary for each wanted position.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    """What the last stage says of one position: K `ids` and their `logits`, largest first.

    `lse`: log-sum-exp over the whole vocabulary; `lse_t`: the same of logits / the row's temperature.
    `extra`: the E logits of the row's extra ids, in the row's order.
    Plain numbers: the head looks at few of them, and to wrap them into arrays takes longer than that.
    """

    ids: Sequence[int]
    logits: Sequence[float]
    lse: float
    lse_t: float
    extra: Sequence[float]


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


def answer_bytes(row: Row, vocab: int) -> int:
    """Bytes of the answer to one wanted position of a row."""
    return WORD * (vocab if row.whole_logits else 2 + 2 * row.top_k + len(row.extra_ids))


def candidate_block(buffer: memoryview, positions: int, top_k: int, extra: int) -> CandidateBlock:
    """Views into writable bytes that begin with `positions` answers of one shape; writing to them fills the bytes."""
    width = 2 + 2 * top_k + extra
    table = np.frombuffer(buffer, _F32, positions * width).reshape(positions, width)
    ids = table[:, 2 + top_k : 2 + 2 * top_k].view(_I32)
    return CandidateBlock(table[:, 0], table[:, 1], table[:, 2 : 2 + top_k], ids, table[:, 2 + 2 * top_k :])


def split(rows: Sequence[Row], payload: Buffer, vocab: int) -> list[list[Candidates | Floats]]:
    """For each row its answers, one for each wanted position: `Candidates`, or float32[V] for `whole_logits`.

    Whole logits are views into the payload.

    Raises:
        ProtocolError: the payload is not exactly as long as these rows make it.

    """
    size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
    if size != candidates_bytes(rows, vocab):
        raise ProtocolError(f"a payload of {size} bytes, where the rows make {candidates_bytes(rows, vocab)}")
    answers: list[list[Candidates | Floats]] = []
    at = 0
    for row in rows:
        answer: list[Candidates | Floats] = []
        for _ in row.want:
            if row.whole_logits:
                answer.append(np.frombuffer(payload, _F32, vocab, at))
                at += WORD * vocab
            else:
                layout = _layout(row.top_k, len(row.extra_ids))
                answer.append(_candidates(layout.unpack_from(payload, at), row.top_k))
                at += layout.size
        answers.append(answer)
    return answers


@functools.lru_cache
def _layout(top_k: int, extra: int) -> struct.Struct:
    return struct.Struct(f"<{2 + top_k}f{top_k}i{extra}f")


def _candidates(words: tuple[Any, ...], top_k: int) -> Candidates:
    middle, last = 2 + top_k, 2 + 2 * top_k
    return Candidates(words[middle:last], words[2:middle], words[0], words[1], words[last:])


def join(answers: Sequence[Sequence[Candidates | Floats]]) -> bytes:
    """The payload that `split` takes apart: for engines that hold one answer at a time, and for tests."""
    parts: list[bytes] = []
    for answer in (one for row in answers for one in row):
        if isinstance(answer, Candidates):
            parts.append(np.array([answer.lse, answer.lse_t], _F32).tobytes())
            parts.append(np.asarray(answer.logits, _F32).tobytes())
            parts.append(np.asarray(answer.ids, _I32).tobytes())
            parts.append(np.asarray(answer.extra, _F32).tobytes())
        else:
            parts.append(answer.astype(_F32).tobytes())
    return b"".join(parts)
