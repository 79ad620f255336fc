"""The head's own scheduler over a simulated ring: what a layout does by the planner's costs, not by its formulas.

Simulated time only. What the predictions of `cluster.planner` are held against.
"""

from __future__ import annotations

from collections.abc import Iterator

from hyperlane.cluster.planner.facts import Workload
from hyperlane.cluster.planner.frame_cost import Round, chunk_shape, decode_shape
from hyperlane.cluster.planner.layout import Layout
from hyperlane.cluster.planner.predict import Predictor, group_sizes
from hyperlane.cluster.planner.simulate import simulate
from hyperlane.head.lane import Lane
from hyperlane.head.scheduler import Flight, Lanes, Policy, schedule

PERIODS = 40
"""How many predicted periods are simulated; the second half is the steady state."""


class SimulatedHead:
    """`streams` sequences of `prompt` tokens each, all there at time 0, that generate until the simulation ends."""

    def __init__(self, predictor: Predictor, layout: Layout, groups: int, streams: int, prompt: int) -> None:
        self._predictor, self._layout = predictor, layout
        self._policy = policy_for(predictor.workload, layout, groups)
        self._lanes = Lanes(streams)
        self._lanes.waiting.extend(Lane(number, prompt, prompt) for number in range(streams))
        self.tokens: list[tuple[float, int]] = []
        """When tokens came back, and how many."""

    def run(self, until_s: float) -> None:
        """Simulate so many seconds."""
        simulate(self._frames, self._cost, until_s)

    def _frames(self, now: float, back: Flight | None) -> Iterator[Flight]:
        lanes = self._lanes
        if back is None:
            lanes.admit()
        else:
            wanted = [share.lane for share in lanes.arrive(back.step).plan.shares if share.wanted]
            for lane in wanted:
                lanes.grow(lanes.running[lane], whole=False)
            self.tokens.append((now, len(wanted)))
        while (plan := schedule(lanes, self._policy)) is not None:
            yield lanes.depart(plan)

    def _cost(self, flight: Flight) -> Round:
        shares = flight.plan.shares
        tokens = sum(share.count for share in shares)
        is_decode = tokens == len(shares)
        last = any(share.wanted for share in shares)
        shape = decode_shape(tokens) if is_decode else chunk_shape(tokens, last=last)
        return self._predictor.costs.of(shape).round(self._layout)


def policy_for(workload: Workload, layout: Layout, groups: int) -> Policy:
    """The scheduler's limits for a layout, with frames enough in flight for its groups."""
    return Policy(
        max_step_tokens=2 * workload.chunk_tokens,
        prompt_chunk=workload.chunk_tokens,
        max_frames=workload.frames_in_flight or max(2 * len(layout), groups),
        max_bytes=1 << 60,
        decode_groups=groups,
        min_group_rows=workload.min_group_rows,
    )


def simulated_period_s(predictor: Predictor, layout: Layout, groups: int, streams: int) -> float:
    """Seconds in which every stream has one more token, in the steady state; the head's publishing is not simulated."""
    head = SimulatedHead(predictor, layout, groups, streams, prompt=1)
    head.run(PERIODS * predictor.period_s(layout, group_sizes(streams, groups)))
    steady = head.tokens[len(head.tokens) // 2 :]
    return streams * (steady[-1][0] - steady[0][0]) / sum(count for _, count in steady[1:])


def simulated_ttft_s(predictor: Predictor, layout: Layout) -> float:
    """Seconds until the first token of the workload's prompt is back at the head, on an idle pipeline."""
    head = SimulatedHead(predictor, layout, 1, 1, predictor.workload.prompt_tokens)
    head.run(2 * predictor.ttft_s(layout))
    return next(time for time, count in head.tokens if count)
