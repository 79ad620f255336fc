"""A scheduler's lanes, frames that leave and come back, and what is in them: what tests of schedules are made of."""

from __future__ import annotations

from hyperlane.head.lane import Lane
from hyperlane.head.scheduler import Flight, Lanes, Policy, StepPlan, schedule


def lane(number: int, prompt: int) -> Lane:
    """One that has its prompt."""
    return Lane(number, prompt, prompt)


def lanes_with(*prompts: int, slots: int = 8) -> Lanes:
    """Lanes with prompts of these lengths, in slots, before the first frame."""
    lanes = Lanes(slots)
    lanes.waiting.extend(lane(number, prompt) for number, prompt in enumerate(prompts))
    lanes.admit()
    return lanes


def rows(plan: StepPlan) -> list[tuple[int, int, int, bool]]:
    """Lane, start, count and whether the next token is wanted, for each row."""
    return [(share.lane, share.start, share.count, share.wanted) for share in plan.shares]


def send_all(lanes: Lanes, policy: Policy) -> list[StepPlan]:
    """All frames that may leave now."""
    plans = []
    while (plan := schedule(lanes, policy)) is not None:
        lanes.depart(plan)
        plans.append(plan)
    return plans


def come_back(lanes: Lanes) -> Flight:
    """The oldest frame returns and every wanted lane grows by a token."""
    flight = lanes.arrive(lanes.flights[0].step)
    for share in flight.plan.shares:
        if share.wanted and share.lane in lanes.running:
            lanes.grow(lanes.running[share.lane], whole=False)
    return flight


def decoding(count: int, slots: int = 8) -> Lanes:
    """So many streams, each with its first token."""
    lanes = lanes_with(*[1] * count, slots=slots)
    send_all(lanes, Policy(max_frames=100))
    while lanes.flights:
        come_back(lanes)
    return lanes
