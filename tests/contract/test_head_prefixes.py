"""A head whose slots keep what they hold: nothing is computed twice, and no answer is another one for that."""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from hyperlane.core import Finished, GenerationRequest, SamplingParams, TextDelta
from hyperlane.head.head import Head
from hyperlane.head.options import HeadOptions
from hyperlane.head.prefixes import Reuse
from hyperlane.testing.byte_tokenizer import ByteTokenizer
from hyperlane.testing.engine_ring import engine_ring
from hyperlane.testing.fake_engine import FakeCost, FakeEngine, fake_generate
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs

FACTS = toy_facts(layers=2)
CHUNK = 16


class Rig:
    """A head over two fake stages that note how many tokens each frame had."""

    def __init__(self, head: Head, computed: list[float]) -> None:
        self.head = head
        self.computed = computed

    def ask(self, prompt, count=4, **sampling):
        """Tokens of the answer, the last event, and how many tokens stage 0 computed."""
        self.computed.clear()
        tokens, last = read(self.submit(prompt, count, **sampling))
        return tokens, last, int(sum(self.computed))

    def submit(self, prompt, count=4, **sampling):
        params = SamplingParams(**{"temperature": 0.0, **sampling})
        return self.head.submit(GenerationRequest("t", tuple(prompt), params, max_tokens=count, ignore_eos=True))


def read(stream):
    *deltas, last = stream
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    return [token for delta in deltas for token in delta.tokens], last


@contextmanager
def rig(reuse=Reuse.ALL, slots=4):
    computed: list[float] = []
    options = HeadOptions(max_step_tokens=CHUNK + slots, prompt_chunk=CHUNK, prefix_cache=reuse, queue=500)
    head = Head(FACTS, ByteTokenizer(), options)
    plan = toy_plan(FACTS, stages=2, slots=slots)
    first, last = toy_specs(plan, max_step_tokens=options.max_step_tokens)
    engines = [FakeEngine(first, cost=FakeCost(token_s=1.0), wait=computed.append), FakeEngine(last)]
    with engine_ring((first, last), engines) as ring:
        head.attach(ring, plan, 1)
        yield Rig(head, computed)
        head.close()


def test_of_a_conversation_only_the_new_turn_is_computed():
    with rig() as running:
        prompt = list(b"You are kind. " * 5)
        for turn in range(4):
            tokens, last, computed = running.ask(prompt, 12)
            assert tokens == fake_generate(prompt, 12, FACTS)
            cached = last.usage.cached_tokens
            assert computed == len(prompt) - cached + 11
            # The last token of an answer was picked and never fed; one more may be for the sake of its arithmetic.
            assert not turn or cached in (len(prompt) - 17, len(prompt) - 18)
            prompt += [*tokens, *b" Tell me more %d." % turn]
        status = running.head.status()
        assert status.requests_continued == 3
        assert status.cached_tokens > 100


def test_a_prompt_that_others_compute_at_the_same_time_is_computed_once():
    prompt = list(b"a long system prompt that all begin with " * 6)
    with rig() as running:
        streams = [running.submit([*prompt, *b"question %d" % number], 20) for number in range(12)]
        answers = [read(stream) for stream in streams]
        total = sum(running.computed)
    for number, (tokens, _) in enumerate(answers):
        assert tokens == fake_generate([*prompt, *b"question %d" % number], 20, FACTS)
    assert total < 2 * len(prompt) + 12 * (2 * CHUNK + 20)
    assert sum(last.usage.cached_tokens > len(prompt) - CHUNK for _, last in answers) == 11


def test_a_seeded_request_goes_on_from_prompts_alone():
    with rig() as running:
        prompt = list(b"x" * 50)
        answer, _, _ = running.ask(prompt, 40)
        turn = [*prompt, *answer, *b"and now?"]
        assert running.ask(turn, seed=1)[1].usage.cached_tokens == 50
    with rig(Reuse.PROMPTS) as running:
        running.ask(prompt, 40)
        assert running.ask(turn)[1].usage.cached_tokens == 50


def test_switched_off_everything_is_computed():
    with rig(Reuse.OFF) as running:
        for _ in range(2):
            tokens, last, computed = running.ask(b"the same prompt, twice", 5)
            assert tokens == fake_generate(b"the same prompt, twice", 5, FACTS)
            assert (computed, last.usage.cached_tokens) == (26, 0)
        assert running.head.status().requests_continued == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("slots", [1, 3])
def test_a_storm_of_related_prompts_with_cancels_gets_the_models_answers(seed, slots):
    chance = random.Random(seed)
    stems = [bytes(chance.randrange(256) for _ in range(length)) for length in (20, 40, 90)]

    def one(number):
        mine = random.Random(seed * 1000 + number)
        stem = mine.choice(stems)
        prompt = stem[: mine.randrange(1, len(stem) + 1)] + bytes(
            mine.randrange(256) for _ in range(mine.choice([0, 30]))
        )
        if mine.random() < 0.3:
            prompt += bytes(t % 256 for t in fake_generate(prompt, 10, FACTS))
        count = mine.choice([1, 10, 40])
        stream = running.submit(prompt, count)
        patience = mine.choice([0, 2, 1000])
        tokens = []
        for event in stream:
            if isinstance(event, TextDelta):
                tokens += event.tokens
                patience -= 1
                if patience <= 0:
                    stream.cancel()
            else:
                assert isinstance(event, Finished)
        assert tokens == fake_generate(prompt, len(tokens), FACTS)
        return event.usage.cached_tokens

    with rig(slots=slots) as running, ThreadPoolExecutor(8) as callers:
        cached = list(callers.map(one, range(120)))
        status = running.head.status()
        assert sum(count > 0 for count in cached) == status.requests_continued > 0
        assert (status.queued, status.active) == (0, 0)
