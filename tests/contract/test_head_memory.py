"""A head that serves for long, and loses pipelines meanwhile, holds no more of anything than one that has just begun.

Counts objects, not bytes: what an allocator keeps is no leak.
"""

from __future__ import annotations

import gc
from collections import Counter
from contextlib import ExitStack

import pytest

from hyperlane.core import GenerationRequest, SamplingParams
from hyperlane.head import deadline, pace, timings
from hyperlane.head.head import Head
from hyperlane.testing.byte_tokenizer import ByteTokenizer
from hyperlane.testing.engine_ring import engine_ring
from hyperlane.testing.fake_engine import FakeEngine, FakeFaults
from hyperlane.testing.mixed_requests import ASKED, FACTS, GREEDY, PATIENT, told
from hyperlane.testing.toy import toy_plan, toy_specs

ROUNDS = 8
"""One that stays of every request or every pipeline is then told from one that comes and goes."""


@pytest.fixture
def short_memory(monkeypatch):
    """What is remembered of times is soon full."""
    for module in (deadline, pace, timings):
        monkeypatch.setattr(module, "WINDOW", 2)


class Lossy:
    """A head whose pipeline fails in the middle of each round, and is let go at its end."""

    def __init__(self) -> None:
        self.epoch = 0
        self.parts = ExitStack()
        self.head = Head(FACTS, ByteTokenizer(), PATIENT, on_lost=lambda _: self.attach(None))

    def attach(self, raises_at: int | None) -> None:
        self.epoch += 1
        plan = toy_plan(FACTS, stages=2, slots=4)
        specs = toy_specs(plan, self.epoch, max_step_tokens=16)
        engines = [FakeEngine(spec, faults=FakeFaults(raises_at=raises_at if spec.is_last else None)) for spec in specs]
        self.head.attach(self.parts.enter_context(engine_ring(specs, engines)), plan, self.epoch)

    def round(self) -> None:
        """Requests of every sort over a pipeline that is lost, one that is abandoned, then another pipeline's turn."""
        self.attach(raises_at=9)
        streams = [self.head.submit(request(prompt, params)) for prompt, params in ASKED]
        left = self.head.submit(request(b"nobody reads this", GREEDY))
        next(left)
        left.cancel()
        for stream in [*streams, left]:
            told(stream)
        self.head.pause()
        self.parts.close()


def request(prompt: bytes, params: SamplingParams) -> GenerationRequest:
    """One that is over after a few frames."""
    return GenerationRequest("r", tuple(prompt), params, max_tokens=20, ignore_eos=True)


def held() -> Counter[str]:
    """How many objects of each type of ours there are, and of containers, in which anything else would be kept."""
    gc.collect()
    kinds = (type(one) for one in gc.get_objects())
    return Counter(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in kinds
        if str(kind.__module__).startswith("hyperlane.") or kind in (list, dict, set)
    )


def test_rounds_of_requests_and_losses_leave_nothing_in_the_head(short_memory):
    lossy = Lossy()
    try:
        for _ in range(3):
            lossy.round()
        before = held()
        for _ in range(ROUNDS):
            lossy.round()
        more = held() - before
        status = lossy.head.status()
    finally:
        lossy.head.close()
        lossy.parts.close()
    assert status.losses == 3 + ROUNDS
    assert status.requests_admitted == status.requests_ended == (3 + ROUNDS) * (len(ASKED) + 1)
    assert {kind: count for kind, count in more.items() if count >= ROUNDS} == {}
