"""However many stages a model is cut into, and whatever runs beside a request, the same tokens come out.

Over raw links, greedy, with the fast integer arithmetic. No difference is accepted: int8 activations turn a last bit
into another answer, so the engine keeps every order of its arithmetic the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from hyperlane.config import ServeConfig
from hyperlane.core import Failed, GenerationRequest, SamplingParams, TextDelta, TextGenerator
from hyperlane.node import start_serving

NEW_TOKENS = 64
PROMPT_LENGTHS = (5, 8, 13, 17, 24, 31, 45, 60, 64, 77, 100, 127, 128, 129, 200, 256, 301, 400, 640, 900)
STAGE_COUNTS = (2, 3, 5)

Answers = Sequence[tuple[int, ...]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


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


async def answer(generator: TextGenerator, prompt: tuple[int, ...]) -> tuple[int, ...]:
    tokens: list[int] = []
    request = GenerationRequest("agree", prompt, SamplingParams(temperature=0.0), NEW_TOKENS, ignore_eos=True)
    async for event in generator.submit(request):
        match event:
            case TextDelta():
                tokens += event.tokens
            case Failed(error=error):
                raise error
    assert len(tokens) == NEW_TOKENS
    return tuple(tokens)


async def answers(generator: TextGenerator, at_once: int) -> Answers:
    limit = asyncio.Semaphore(at_once)

    async def one(prompt: tuple[int, ...]) -> tuple[int, ...]:
        async with limit:
            return await answer(generator, prompt)

    return await asyncio.gather(*(one(prompt) for prompt in prompts(generator)))


def check_same(reference: Answers, other: Answers, where: str) -> None:
    for length, wanted, got in zip(PROMPT_LENGTHS, reference, other, strict=True):
        assert wanted == got, f"{where}: the answer to the prompt of {length} tokens differs"


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_greedy_answers_are_the_same_through_any_number_of_stages_alone_and_beside_others(
    model: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(f"{model}_path")
    with pipeline(path, 1) as generator:
        reference = asyncio.run(answers(generator, at_once=1))
        check_same(reference, asyncio.run(answers(generator, at_once=8)), "1 stage, 8 at once")
    for stages in STAGE_COUNTS:
        with pipeline(path, stages) as generator:
            check_same(reference, asyncio.run(answers(generator, at_once=1)), f"{stages} stages, alone")
            check_same(reference, asyncio.run(answers(generator, at_once=8)), f"{stages} stages, 8 at once")
