"""What a concrete layout will do: time per token, time to first token, tokens per second of many streams. Pure.

The formulas are derived in `docs/planning.md` and held against a simulation by tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from hyperlane.cluster.planner.chunk import best_chunk, pieces
from hyperlane.cluster.planner.facts import ClusterFacts, Workload
from hyperlane.cluster.planner.frame_cost import CostBook, Round, Shape, chunk_shape, decode_shape
from hyperlane.cluster.planner.layout import Layout


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a pipeline is expected to do.

    `token_s`: per token of one stream. `ttft_s`, `answer_s`: until the first and the last token of an answer,
    on an idle pipeline, its prompt cut into pieces of `chunk_tokens`. `period_s`: until each of `streams` streams has
    one more token, with `groups` groups in flight.
    """

    token_s: float
    ttft_s: float
    answer_s: float
    streams: int
    groups: int
    period_s: float
    chunk_tokens: int

    @property
    def one_stream_rate(self) -> float:
        """Tokens per second of one stream."""
        return 1 / self.token_s

    @property
    def many_rate(self) -> float:
        """Tokens per second of all streams together."""
        return self.streams / self.period_s


@dataclass(frozen=True, slots=True)
class Crowd:
    """Workers of one machine that have more threads than it has cores: `weights` is threads by worker number."""

    cores: int
    weights: tuple[tuple[int, int], ...]


class Predictor:
    """Predicts layouts of one cluster and one workload."""

    def __init__(self, facts: ClusterFacts, workload: Workload) -> None:
        self.facts = facts
        self.workload = workload
        self.costs = CostBook(facts, workload)
        self.crowds = crowds_of(facts)

    def forecast(self, layout: Layout, streams: int | None = None) -> Forecast:
        """Everything at once, with the best number of groups. `streams`: other than the workload's."""
        streams = streams or self.workload.streams
        groups, period_s = self.best_groups(layout, streams)
        token_s, chunk = self.token_s(layout), self.best_chunk(layout)
        ttft_s = self.ttft_s(layout, chunk)
        answer_s = ttft_s + max(0, self.workload.answer_tokens - 1) * token_s
        return Forecast(token_s, ttft_s, answer_s, streams, groups, period_s, chunk)

    def token_s(self, layout: Layout) -> float:
        """Seconds per token of one stream: every server and every delay of the ring, one after another."""
        return self.period_s(layout, (1,))

    def best_groups(self, layout: Layout, streams: int) -> tuple[int, float]:
        """How many groups to keep in flight, and the period then; the fewest groups of those that are equally good."""
        choices = self.splits(streams)
        periods = {len(sizes): self.period_s(layout, sizes) for sizes in choices}
        return min(periods.items(), key=lambda item: (item[1], item[0]))

    def splits(self, streams: int) -> list[tuple[int, ...]]:
        """The ways in which the head's scheduler can split so many decoding streams into groups."""
        most = max(1, streams // self.workload.min_group_rows)
        most = min(most, self.workload.frames_in_flight or most)
        return sorted({group_sizes(streams, groups) for groups in range(1, most + 1)}, key=len)

    def period_s(self, layout: Layout, groups: Sequence[int]) -> float:
        """Seconds until every row of the groups (rows of each) has one more token."""
        rounds = [self.costs.of(decode_shape(rows)).round(layout) for rows in groups]
        loads = [sum(busy) for busy in zip(*(one.busy for one in rounds), strict=True)]
        crowded = self._crowded_s(layout, loads[2::2])
        times: list[float] = [*(one.ring_s for one in rounds), *loads, self.head_s(groups), crowded]
        return max(times)

    def head_s(self, groups: Sequence[int]) -> float:
        """Seconds of the head's thread in a period."""
        head = self.facts.head
        return len(groups) * head.step_s + sum(groups) * (head.token_s + head.publish_s)

    def ttft_s(self, layout: Layout, chunk_tokens: int | None = None) -> float:
        """Seconds until the first token of the prompt: chunk after chunk, each as soon as a stage is free for it.

        `chunk_tokens`: other than the workload's.
        """
        window = self.workload.frames_in_flight or 2 * len(layout)
        rounds = self._prompt(layout, chunk_tokens or self.workload.chunk_tokens)
        free = [0.0] * len(rounds[0].busy)
        returned: list[float] = []
        for number, one in enumerate(rounds):
            now = returned[number - window] if number >= window else 0.0
            for server, (busy, delay) in enumerate(zip(one.busy, one.delays, strict=True)):
                free[server] = max(now, free[server]) + busy
                now = free[server] + delay
            returned.append(now)
        loads = [sum(busy) for busy in zip(*(one.stages for one in rounds), strict=True)]
        return max(returned[-1], self._crowded_s(layout, loads)) + self.facts.head.publish_s

    def best_chunk(self, layout: Layout) -> int:
        """Into how large pieces a layout's prompts are best cut, of the workload's choices."""
        choices = self.workload.chunk_choices
        if len(choices) < 2:
            return choices[0] if choices else self.workload.chunk_tokens

        def busy_s(tokens: int) -> float:
            return max(self.costs.of(chunk_shape(tokens, last=False)).round(layout).busy)

        return best_chunk(choices, partial(self.ttft_s, layout), busy_s, self.token_s(layout))

    def chunk(self, layout: Layout) -> Round:
        """The way of a full chunk of the prompt that is not its last."""
        return self.costs.of(self.chunk_shape()).round(layout)

    def chunk_shape(self) -> Shape:
        """The prompt's largest chunk."""
        return chunk_shape(min(self.workload.chunk_tokens, self.workload.prompt_tokens), last=False)

    def _prompt(self, layout: Layout, chunk_tokens: int) -> list[Round]:
        *sizes, last = pieces(self.workload.prompt_tokens, chunk_tokens)
        rounds = [self.costs.of(chunk_shape(tokens, last=False)).round(layout) for tokens in sizes]
        return [*rounds, self.costs.of(chunk_shape(last, last=True)).round(layout)]

    def _crowded_s(self, layout: Layout, stage_loads: Sequence[float]) -> float:
        """Seconds that a machine's cores need for its stages' work, where these have more threads than it has cores."""
        loads = {share.worker: load for share, load in zip(layout, stage_loads, strict=True)}
        times = (sum(n * loads.get(worker, 0.0) for worker, n in crowd.weights) / crowd.cores for crowd in self.crowds)
        return max(times, default=0.0)


def group_sizes(streams: int, groups: int) -> tuple[int, ...]:
    """Rows of each group as the scheduler fills them: as many as the largest needs, the rest in the last."""
    rows = -(-streams // groups)
    full, rest = divmod(streams, rows)
    return (rows,) * full + ((rest,) if rest else ())


def crowds_of(facts: ClusterFacts) -> tuple[Crowd, ...]:
    """The machines whose workers have more threads than there are cores."""
    threads = {worker.name: (number, worker.threads) for number, worker in enumerate(facts.workers)}
    crowds = []
    for machine in facts.machines:
        # A worker alone cannot use more than there are: what its steps take then was measured so.
        members = [(threads[name][0], min(threads[name][1], machine.cores)) for name in machine.workers]
        if sum(count for _, count in members) > machine.cores:
            crowds.append(Crowd(machine.cores, tuple(members)))
    return tuple(crowds)
