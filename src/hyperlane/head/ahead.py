"""The frame that will probably leave next, planned while the last one is under way. Pure; knows no ring.

When every sequence decodes and its row is in flight, the next frame depends on nothing but the tokens that come back:
the scheduler is asked what it would do with one token more for each, and what it says is used if that is what happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hyperlane.head.frames import rows_of
from hyperlane.head.sampler import Ask
from hyperlane.head.scheduler import Lanes, Policy, StepPlan, schedule
from hyperlane.head.sequence import Sequence
from hyperlane.wire.frame import PackedRows
from hyperlane.wire.rows import pack_rows


@dataclass(frozen=True, slots=True)
class Ahead:
    """The next frame's plan and rows. `asked`: its sequences, and what each asked for when this was planned."""

    plan: StepPlan
    rows: PackedRows
    asked: tuple[tuple[Sequence, Ask], ...]

    def holds(self, lanes: Lanes) -> bool:
        """Whether each of its sequences got its token and asks for the same, and nothing else happened."""
        if lanes.flights or lanes.waiting or len(lanes.running) != len(self.asked) or lanes.last_was_whole:
            return False
        for (sequence, ask), share in zip(self.asked, self.plan.shares, strict=True):
            lane = sequence.lane
            if lane.length != share.start + 1 or lane.sent != share.start or lane.whole or lane.id not in lanes.running:
                return False
            if sequence.ask is not ask:
                return False
        return True


def look_ahead(lanes: Lanes, policy: Policy, sequences: Mapping[int, Sequence]) -> Ahead | None:
    """What will leave once the frame in flight came back with a token for each lane; None where that cannot be said."""
    if len(lanes.flights) != 1 or lanes.waiting or lanes.last_was_whole:
        return None
    if any(lane.sent != lane.length or lane.sent < lane.prompt or lane.whole for lane in lanes.running.values()):
        return None
    then = Lanes(lanes.slots, {id: replace(lane, length=lane.length + 1) for id, lane in lanes.running.items()})
    then.steps = lanes.steps
    plan = schedule(then, policy)
    if plan is None or len(plan.shares) != len(lanes.running):
        return None
    rows = rows_of(plan, sequences)
    asked = tuple((sequences[share.lane], sequences[share.lane].ask) for share in plan.shares)
    return Ahead(plan, PackedRows(rows, pack_rows(rows)), asked)
