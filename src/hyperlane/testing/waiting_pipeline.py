"""A head over engines that wait for as long as a stage of a real model takes: schedules are timed, not arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hyperlane.core import Row
from hyperlane.head.head import Head
from hyperlane.head.options import HeadOptions
from hyperlane.head.prefixes import Reuse
from hyperlane.head.service import HeadService
from hyperlane.testing.byte_tokenizer import ByteTokenizer
from hyperlane.testing.engine_ring import engine_ring
from hyperlane.testing.fake_engine import FakeCost, FakeEngine
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs

CHUNK = 64
"""Tokens of a prompt that go together."""

RUN_S, TOKEN_S, ROW_S = 0.0042, 0.00195, 0.0036
"""Of a whole small model on one CPU thread: a run of the engine, each token of a prompt, each decode row; seconds."""


class StageCost(FakeCost):
    """What a share of a model takes: decode rows cost otherwise than the tokens of a prompt."""

    def of(self, rows: Sequence[Row]) -> float:
        """Seconds of one frame; decode rows share a run of the engine with a prompt's piece, if there is one."""
        singles = sum(row.count == 1 for row in rows)
        tokens = sum(row.count for row in rows) - singles
        runs = max(singles > 0, sum(row.count > 1 for row in rows))
        return self.step_s * runs + self.row_s * singles + self.token_s * tokens


@contextmanager
def waiting_pipeline(stages: int, streams: int, context: int) -> Iterator[HeadService]:
    """A service over so many equal stages; `streams`: slots, `context`: tokens of one. No prefix cache."""
    facts = toy_facts(layers=4, context=context)
    plan = toy_plan(facts, stages, slots=streams)
    options = HeadOptions(max_step_tokens=CHUNK + streams, prompt_chunk=CHUNK, prefix_cache=Reuse.OFF)
    specs = toy_specs(plan, max_step_tokens=options.max_step_tokens)
    cost = StageCost(RUN_S / stages, ROW_S / stages, TOKEN_S / stages)
    head = Head(facts, ByteTokenizer(), options)
    with engine_ring(specs, [FakeEngine(spec, cost=cost) for spec in specs]) as ring:
        service = HeadService(head, ByteTokenizer())
        head.switch(ring, plan, 1)
        yield service
        head.close()
