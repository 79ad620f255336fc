"""Prompts that go on from what slots hold of other prompts get exactly the answers that they get without."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from hyperlane.config import ServeConfig
from hyperlane.core import Failed, Finished, GenerationRequest, SamplingParams, TextDelta, TextGenerator
from hyperlane.node import start_serving

NEW_TOKENS = 48
STEMS = (20, 63, 64, 65, 130, 200)
TAILS = (1, 2, 17, 64, 90)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


async def answer(generator: TextGenerator, prompt: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Tokens of a greedy answer, and how many of the prompt's were not computed."""
    tokens: list[int] = []
    cached = 0
    request = GenerationRequest("bits", tuple(prompt), SamplingParams(temperature=0.0), NEW_TOKENS, ignore_eos=True)
    async for event in generator.submit(request):
        match event:
            case TextDelta():
                tokens += event.tokens
            case Failed(error=error):
                raise error
            case Finished(usage=usage):
                cached = usage.cached_tokens
    return tuple(tokens), cached


async def answers(generator: TextGenerator, prompts: Sequence[Sequence[int]]) -> list[tuple[tuple[int, ...], int]]:
    return [await answer(generator, prompt) for prompt in prompts]


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_a_prompt_that_goes_on_from_another_one_is_answered_to_the_same_bits(model, request) -> None:
    path = request.getfixturevalue(f"{model}_path")
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    found = {}
    for cache in ("off", "prompts"):
        config = ServeConfig(model=str(path), local_workers=2, threads=1, slots=4, context=512, prefix_cache=cache)
        with start_serving(config) as serving:
            tokens = serving.service.encode(text)
            prompts = [[*tokens[:stem], *tokens[300 + 7 * tail : 300 + 8 * tail]] for stem in STEMS for tail in TAILS]
            found[cache] = asyncio.run(answers(serving.service, prompts))
    assert [tokens for tokens, _ in found["prompts"]] == [tokens for tokens, _ in found["off"]]
    assert sum(cached > 0 for _, cached in found["prompts"]) > len(STEMS) * (len(TAILS) - 1)
