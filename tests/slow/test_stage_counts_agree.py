"""However many stages a model is cut into, and whatever runs beside a request, the same tokens come out.

Over raw links and greedy. Where an answer differs, the reference's two best tokens must be closer than what two orders of the
same arithmetic may differ by; the tests count such places, and one that is not such a place fails them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyperlane.config import ServeConfig
from hyperlane.core import Failed, GenerationRequest, SamplingParams, TextDelta, TextGenerator
from hyperlane.node import start_serving

NEW_TOKENS = 64
PROMPT_LENGTHS = (5, 8, 13, 17, 24, 31, 45, 60, 64, 77, 100, 127, 128, 129, 200, 256, 301, 400, 640, 900)
STAGE_COUNTS = (1, 2, 3, 5)
TIE = 2e-3
"""Difference of two log-probabilities that two orders of the same float32 arithmetic may swap (measured: 3e-4)."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens, and by how much each was ahead of the second best."""

    tokens: tuple[int, ...]
    leads: tuple[float, ...]


@contextmanager
def pipeline(model: Path, stages: int) -> Iterator[TextGenerator]:
    serving = start_serving(ServeConfig(model=str(model), local_workers=stages, threads=1, slots=8, context=1024))
    try:
        yield serving.service
    finally:
        serving.close()


def prompts(generator: TextGenerator) -> list[tuple[int, ...]]:
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    tokens = generator.encode(text)
    return [tokens[17 * number : 17 * number + length] for number, length in enumerate(PROMPT_LENGTHS)]


async def answer(generator: TextGenerator, prompt: tuple[int, ...]) -> Answer:
    tokens: list[int] = []
    leads: list[float] = []
    sampling = SamplingParams(temperature=0.0, logprobs=2)
    request = GenerationRequest("agree", prompt, sampling, max_tokens=NEW_TOKENS, ignore_eos=True)
    async for event in generator.submit(request):
        match event:
            case TextDelta():
                tokens += event.tokens
                leads += [choice.top[0].logprob - choice.top[1].logprob for choice in event.logprobs]
            case Failed(error=error):
                raise error
    assert len(tokens) == len(leads) == NEW_TOKENS
    return Answer(tuple(tokens), tuple(leads))


async def answers(generator: TextGenerator, at_once: int) -> list[Answer]:
    limit = asyncio.Semaphore(at_once)

    async def one(prompt: tuple[int, ...]) -> Answer:
        async with limit:
            return await answer(generator, prompt)

    return await asyncio.gather(*(one(prompt) for prompt in prompts(generator)))


def check_same(reference: Sequence[Answer], other: Sequence[Answer], where: str) -> None:
    for number, (wanted, got) in enumerate(zip(reference, other, strict=True)):
        if wanted.tokens == got.tokens:
            continue
        at = next(i for i, pair in enumerate(zip(wanted.tokens, got.tokens, strict=True)) if len(set(pair)) > 1)
        print(f"{where}: prompt {number} differs at token {at}, lead {wanted.leads[at]:.2g}")
        assert wanted.leads[at] <= TIE, f"{where}: prompt {number} differs at token {at}, and no tie is the reason"


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_greedy_answers_are_the_same_through_any_number_of_stages_alone_and_beside_others(
    model: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(f"{model}_path")
    with pipeline(path, 1) as generator:
        reference = asyncio.run(answers(generator, at_once=1))
        check_same(reference, asyncio.run(answers(generator, at_once=8)), "1 stage, 8 at once")
    for stages in STAGE_COUNTS[1:]:
        with pipeline(path, stages) as generator:
            check_same(reference, asyncio.run(answers(generator, at_once=1)), f"{stages} stages, alone")
            check_same(reference, asyncio.run(answers(generator, at_once=8)), f"{stages} stages, 8 at once")
