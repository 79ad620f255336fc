"""What the two ends of a link agreed: limits that are checked before anything is allocated, epoch and frame kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from hyperlane.core import Row
from hyperlane.errors import ProtocolError
from hyperlane.wire.candidates import candidates_bytes
from hyperlane.wire.kind import Kind

TOKEN_ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest frame that a link carries. `docs/wire-format.md` says which field bounds what.

    `max_step_tokens`: sum of a frame's row counts. `context`: tokens a slot holds. `token_bytes`: bytes of one
    token's hidden state as packed on this link. `max_top_k`, `max_extra_ids`: of one row. `max_timings`: stages that
    a frame passes. `max_payload_bytes`: also bounds what whole logits may be asked for at once.
    """

    max_rows: int
    max_step_tokens: int
    slots: int
    context: int
    vocab: int
    token_bytes: int
    max_top_k: int = 256
    max_extra_ids: int = 4096
    max_timings: int = 256
    max_payload_bytes: int = 1 << 28

    def within(self, other: Limits) -> bool:
        """Whether no field is larger than the other's."""
        return all(mine <= theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds on one link from HELLO to its end.

    `kinds`: the step frames that it carries. `stage`: where a link to the next stage leads; 0 on the head's.
    """

    epoch: int
    limits: Limits
    kinds: frozenset[Kind]
    stage: int = 0


def payload_bytes(kind: Kind, rows: Sequence[Row], limits: Limits, stage: int = 0) -> int:
    """Bytes that the payload of a step frame with these rows has: no other length is valid.

    `stage`: of whom receives hidden states: rows that it leaves out bring none.

    Raises:
        ProtocolError: the answer is of the other kind than the rows ask for.

    """
    if kind is Kind.HIDDEN:
        return limits.token_bytes * sum(row.count for row in rows if not row.is_skipped(stage))
    if kind is Kind.TOKENS:
        return TOKEN_ID_BYTES * sum(row.count for row in rows)
    size = candidates_bytes(rows, limits.vocab)
    if size and rows[0].whole_logits is not (kind is Kind.LOGITS):
        raise ProtocolError(f"a {kind.name} frame, but its rows ask for the other kind of answer")
    return size
