"""Many readers, cancels and a failure at once: whatever the order, every accepted request ends exactly once."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hyperlane.core import (
    Endings,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Refusals,
    SamplingParams,
    TextDelta,
)
from hyperlane.errors import Overloaded, PipelineLost
from hyperlane.head.head import Head
from hyperlane.head.options import HeadOptions
from hyperlane.testing.byte_tokenizer import ByteTokenizer
from hyperlane.testing.engine_ring import engine_ring
from hyperlane.testing.fake_engine import FakeEngine, FakeFaults, fake_generate
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs

FACTS = toy_facts(layers=2)
CALLERS, EACH = 8, 12


def one_call(head: Head, chance: random.Random, number: int) -> str:
    """Submit, read, perhaps cancel; returns how it ended, having checked all that was told."""
    prompt = bytes(chance.randrange(256) for _ in range(chance.choice([1, 5, 40, 120])))
    count = chance.choice([1, 3, 30])
    request = GenerationRequest(
        str(number), tuple(prompt), SamplingParams(temperature=0.0), max_tokens=count, ignore_eos=True
    )
    try:
        stream = head.submit(request)
    except (Overloaded, PipelineLost) as refusal:
        return type(refusal).__name__
    patience = chance.choice([0, 1, 5, 1000])
    tokens: list[int] = []
    ends = []
    for event in stream:
        if isinstance(event, TextDelta):
            assert not ends
            tokens += event.tokens
            patience -= 1
        else:
            ends.append(event)
        if patience <= 0:
            stream.cancel()
    assert len(ends) == 1
    assert tokens == fake_generate(prompt, len(tokens), FACTS)
    if isinstance(ends[0], Failed):
        assert isinstance(ends[0].error, PipelineLost)
        return "Failed"
    assert isinstance(ends[0], Finished)
    assert (ends[0].reason is FinishReason.LENGTH) == (len(tokens) == count) or ends[0].usage.completion_tokens == count
    return ends[0].reason.value


@pytest.mark.parametrize("seed", range(6))
def test_every_request_of_a_storm_ends_once(seed):
    chance = random.Random(seed)
    plan = toy_plan(FACTS, stages=2, slots=3)
    specs = toy_specs(plan, max_step_tokens=16)
    # In the odd runs a stage fails somewhere in the middle.
    faults = FakeFaults(raises_at=chance.randrange(10, 200) if seed % 2 else None)
    lost = threading.Event()
    head = Head(FACTS, ByteTokenizer(), HeadOptions(max_step_tokens=16, queue=4), on_lost=lambda _: lost.set())
    with engine_ring(specs, [FakeEngine(spec, faults=faults) for spec in specs]) as ring:
        head.attach(ring, plan, 1)
        with ThreadPoolExecutor(CALLERS) as callers:
            chances = [random.Random(chance.random()) for _ in range(CALLERS)]
            ways = [callers.submit(lambda c=c: [one_call(head, c, number) for number in range(EACH)]) for c in chances]
            ends = [end for way in ways for end in way.result(60)]
        assert len(ends) == CALLERS * EACH
        assert seed % 2 or not {"Failed", "PipelineLost"} & set(ends)
        assert "Failed" not in ends or lost.wait(10)
        status = head.status()
        accepted = len(ends) - ends.count("Overloaded") - ends.count("PipelineLost")
        assert (status.requests_admitted, status.requests_ended) == (accepted, accepted)
        assert status.refusals == Refusals(ends.count("Overloaded"), ends.count("PipelineLost"))
        assert status.endings == Endings(
            stop=ends.count("stop"),
            length=ends.count("length"),
            cancelled=ends.count("cancelled"),
            lost=ends.count("Failed"),
        )
        assert (status.queued, status.active) == (0, 0)
        head.close()
