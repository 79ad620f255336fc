"""From a step's plan to the frame that leaves. Pure; knows no ring."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from hyperlane.core import Row
from hyperlane.head.scheduler import Flight, Share, StepPlan
from hyperlane.head.sequence import Sequence
from hyperlane.wire.frame import Frame, Kind, PackedRows


@dataclass(frozen=True, slots=True)
class Departure:
    """A frame that left: when (seconds), its rows, its bytes, and whether no other frame was in flight."""

    at_s: float
    rows: tuple[Row, ...]
    sent_bytes: int
    alone: bool

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(row.count for row in self.rows)


def step_frame(flight: Flight, sequences: Mapping[int, Sequence], epoch: int, ahead: PackedRows | None = None) -> Frame:
    """The TOKENS frame of a plan: one row for each share, the rows' token ids one after the other.

    `ahead`: its rows, where they were made before.
    """
    tokens: list[int] = []
    for share in flight.plan.shares:
        tokens += sequences[share.lane].tokens[share.start : share.start + share.count]
    rows = ahead.rows if ahead is not None else rows_of(flight.plan, sequences)
    return Frame(Kind.TOKENS, epoch, flight.step, rows, (struct.pack(f"<{len(tokens)}i", *tokens),), (), ahead)


def rows_of(plan: StepPlan, sequences: Mapping[int, Sequence]) -> tuple[Row, ...]:
    """The rows of a plan: what each of them asks for follows from its sequence."""
    return tuple(_row(share, sequences[share.lane], whole_logits=plan.whole_logits) for share in plan.shares)


def _row(share: Share, sequence: Sequence, *, whole_logits: bool) -> Row:
    asked = sequence.ask
    return Row(
        slot=share.slot,
        start=share.start,
        count=share.count,
        want=(share.count - 1,) if share.wanted else (),
        top_k=asked.top_k,
        extra_ids=asked.extra_ids if share.wanted and not whole_logits else (),
        temperature=asked.temperature,
        whole_logits=whole_logits,
        skip_from=share.skip_from,
        one_by_one=share.one_by_one,
    )
