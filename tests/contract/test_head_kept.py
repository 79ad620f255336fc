"""Stages that outlive a pipeline keep their KV entries: those after the lost one compute nothing twice.

The engines' arithmetic is another one for a row of one token than for a row of several, as attention's is.
"""

from __future__ import annotations

import itertools

import pytest

from hyperlane.core import GenerationRequest, Kept
from hyperlane.head.head import Head
from hyperlane.testing.byte_tokenizer import ByteTokenizer
from hyperlane.testing.engine_ring import linked
from hyperlane.testing.fake_engine import FakeFaults
from hyperlane.testing.mixed_requests import ASKED, FACTS, PATIENT, told
from hyperlane.testing.picky_engine import PickyEngine
from hyperlane.testing.toy import toy_plan, toy_specs

STAGES = 4


class Counting(PickyEngine):
    """Counts the tokens that it computes. Faults at a step, counted from 0."""

    def __init__(self, spec, raises_at=None):
        super().__init__(spec, faults=FakeFaults(raises_at=raises_at))
        self.computed = 0

    def step(self, rows):
        self.computed += sum(row.count for row in rows)
        return super().step(rows)


class Cluster:
    """Loses the stages that it is told, each at a step of its own; the others' engines go on."""

    def __init__(self, losses: list[tuple[int, int]]) -> None:
        self.losses = iter(losses)
        self.plan = toy_plan(FACTS, STAGES, slots=4)
        self.epoch = 0
        self.stages = []
        self.engines = [None] * STAGES
        self.before_last = [0] * STAGES
        self.head = Head(FACTS, ByteTokenizer(), PATIENT, on_lost=lambda _: self.build())
        self.lost = STAGES
        self.build()

    def build(self) -> None:
        kept = Kept(self.epoch, self.lost + 1) if self.lost + 1 < STAGES else None
        survivors = [None if stage == self.lost else engine for stage, engine in enumerate(self.engines)]
        for stage in self.stages:
            stage.hand_over()
        self.epoch += 1
        victim, at = next(self.losses, (STAGES, 0))
        specs = toy_specs(self.plan, self.epoch, max_step_tokens=16)
        self.before_last = [engine.computed if engine else 0 for engine in survivors]
        self.engines = [engine or Counting(spec) for engine, spec in zip(survivors, specs, strict=True)]
        if victim < STAGES:
            engine = self.engines[victim]
            engine._faults = FakeFaults(raises_at=engine._steps + at)
        self.lost = victim
        ring, self.stages = linked(specs, self.engines)
        self.head.attach(ring, self.plan, self.epoch, kept)

    def answers(self) -> list[tuple]:
        requests = [
            GenerationRequest("r", tuple(prompt), params, max_tokens=30, ignore_eos=True) for prompt, params in ASKED
        ]
        return [told(stream) for stream in [self.head.submit(request) for request in requests]]

    def close(self) -> None:
        self.head.close()
        for stage in self.stages:
            stage.close()


@pytest.fixture
def answers_of():
    clusters = []

    def answers(losses):
        clusters.append(Cluster(losses))
        return clusters[-1].answers(), clusters[-1]

    yield answers
    for cluster in clusters:
        cluster.close()


@pytest.mark.parametrize(("victim", "at"), [*itertools.product(range(STAGES), range(2, 60, 17))])
def test_what_the_stages_after_the_lost_one_keep_changes_no_answer(answers_of, victim, at):
    undisturbed, _ = answers_of([])
    disturbed, cluster = answers_of([(victim, at), ((victim + 1) % STAGES, 9), (0, 12)])
    assert disturbed == undisturbed
    assert cluster.head.status().losses == 3


def test_they_compute_nothing_twice_and_those_before_it_everything(answers_of):
    _, cluster = answers_of([(1, 40)])
    first, lost, *others = cluster.engines
    assert lost.computed == first.computed - cluster.before_last[0]
    for after, before in zip(others, cluster.before_last[2:], strict=True):
        assert after.computed - before < lost.computed
    _, undisturbed = answers_of([])
    # A frame that was under way is computed again; nothing else is.
    assert others[-1].computed <= undisturbed.engines[-1].computed + 16
