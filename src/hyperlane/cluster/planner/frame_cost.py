"""What one frame costs at every worker and on every link, as arrays: the terms of every prediction and of the search.

Pure. `docs/planning.md` derives what is made of these terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hyperlane.cluster.planner.facts import HEAD, ClusterFacts, Workload
from hyperlane.cluster.planner.layout import Layout, Share

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a frame holds: rows, their tokens, and positions whose candidates are wanted."""

    rows: int
    tokens: int
    wanted: int


def decode_shape(rows: int) -> Shape:
    """A decode step of so many sequences."""
    return Shape(rows, rows, rows)


def chunk_shape(tokens: int, *, last: bool) -> Shape:
    """A chunk of one prompt; the last one asks for the first token."""
    return Shape(1, tokens, int(last))


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """One frame's way round the ring of one layout.

    `busy`: seconds at each server in order: head, link, stage 0, link, … stage P − 1, link. `delays`: seconds after
    each, in which the frame is under way and nobody is busy with it.
    """

    busy: tuple[float, ...]
    delays: tuple[float, ...]

    @property
    def ring_s(self) -> float:
        """From leaving the head to coming back, if nothing is in its way; the head's own time included."""
        return sum(self.busy) + sum(self.delays)

    @property
    def stages(self) -> tuple[float, ...]:
        """Seconds at each stage."""
        return self.busy[2::2]


@dataclass(frozen=True, slots=True, eq=False)
class FrameCost:
    """The terms for n workers. Index n of `send` and `delay` is the head; [i, j] is the link from i to j.

    Of compute, float64[n] seconds: `layer`: one layer; `step`, `embed`, `project`: any stage, the first one, the last.
    `send` float64[n + 1, n + 1]: seconds that a frame occupies a link, infinite without one. `head_s`: the head's.
    """

    layer: Seconds
    step: Seconds
    embed: Seconds
    project: Seconds
    send: Seconds
    delay: Seconds
    head_s: float

    def stage_s(self, share: Share, layers: int) -> float:
        """What a stage of a model with so many layers computes."""
        worker, mine = share.worker, share.layers
        seconds = self.step[worker] + len(mine) * self.layer[worker]
        seconds += self.embed[worker] if mine.first == 0 else 0.0
        seconds += self.project[worker] if mine.last == layers else 0.0
        return float(seconds)

    def round(self, layout: Layout) -> Round:
        """The frame's way round a ring."""
        head, layers = len(self.layer), layout[-1].layers.last
        busy, delays = [self.head_s], [0.0]
        source = head
        for share in layout:
            busy += [float(self.send[source, share.worker]), self.stage_s(share, layers)]
            delays += [float(self.delay[source, share.worker]), 0.0]
            source = share.worker
        return Round((*busy, float(self.send[source, head])), (*delays, float(self.delay[source, head])))


class CostBook:
    """Frame costs by shape, each computed once."""

    def __init__(self, facts: ClusterFacts, workload: Workload) -> None:
        self.facts = facts
        self.workload = workload
        self._known: dict[Shape, FrameCost] = {}
        self._rates, self._delay = _paths(facts)
        self._hidden = np.array(
            [workload.wire.hidden(workload.precision, workload.model.hidden * w.element.bytes) for w in facts.workers],
            np.float64,
        )

    def of(self, shape: Shape) -> FrameCost:
        """The terms for a frame of that shape."""
        if shape not in self._known:
            self._known[shape] = self._cost(shape)
        return self._known[shape]

    def _cost(self, shape: Shape) -> FrameCost:
        devices, head, is_chunk = self.facts.devices, self.facts.head, shape.tokens > shape.rows
        curves = [device.layer_prefill if is_chunk else device.layer_decode for device in devices]
        return FrameCost(
            layer=np.array([curve.seconds(shape.tokens) for curve in curves]),
            step=np.array([device.step_s for device in devices]),
            embed=np.array([device.embed.seconds(shape.tokens) for device in devices]),
            project=np.array([device.project.seconds(shape.wanted) for device in devices]),
            send=self._bytes(shape)[:, None] / self._rates + self._answers(shape),
            delay=self._delay,
            head_s=head.step_s + shape.wanted * head.token_s,
        )

    def _bytes(self, shape: Shape) -> Seconds:
        """Bytes of the frame by its sender, on its way to another worker (or from the head)."""
        wire = self.workload.wire
        return wire.frame + shape.rows * wire.row + shape.tokens * np.append(self._hidden, wire.token)

    def _answers(self, shape: Shape) -> Seconds:
        """The difference that candidates make on the links to the head, in seconds."""
        wire, difference = self.workload.wire, np.zeros_like(self._rates)
        answer = shape.wanted * wire.candidates - shape.tokens * self._hidden
        difference[:-1, -1] = answer / self._rates[:-1, -1]
        difference[np.isinf(self._delay)] = np.inf
        return difference


def _paths(facts: ClusterFacts) -> tuple[Seconds, Seconds]:
    """Bytes per second and one-way seconds of every link; a delay without end where there is none."""
    ends = {name: i for i, name in enumerate((*facts.names, HEAD))}
    rates, delay = np.ones((len(ends), len(ends))), np.full((len(ends), len(ends)), np.inf)
    for path in facts.paths:
        place = ends[path.source], ends[path.target]
        rates[place], delay[place] = path.bytes_per_s, path.rtt_s / 2
    return rates, delay
