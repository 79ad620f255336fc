"""Prompts of any length are answered to the same bits however large the pieces are in which they go through."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from hyperlane.config import ServeConfig
from hyperlane.core import Failed, GenerationRequest, SamplingParams, TextDelta, TextGenerator
from hyperlane.node import start_serving

LENGTHS = (1, 2, 3, 17, 33, 64, 65, 66, 129, 130, 257, 300)
CHUNKS = (16, 48, 64, 256)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


async def answer(generator: TextGenerator, prompt: Sequence[int]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Tokens of a greedy answer, and the logarithms of their probabilities."""
    tokens: list[int] = []
    logprobs: list[float] = []
    params = SamplingParams(temperature=0.0, logprobs=0)
    async for event in generator.submit(GenerationRequest("chunks", tuple(prompt), params, 16, ignore_eos=True)):
        match event:
            case TextDelta():
                tokens += event.tokens
                logprobs += [one.chosen.logprob for one in event.logprobs]
            case Failed(error=error):
                raise error
    return tuple(tokens), tuple(logprobs)


async def answers(generator: TextGenerator, prompts: Sequence[Sequence[int]]) -> list[object]:
    return [await answer(generator, prompt) for prompt in prompts]


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_an_answer_does_not_depend_on_the_chunk(model, request) -> None:
    path = request.getfixturevalue(f"{model}_path")
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    found = {}
    for chunk in CHUNKS:
        config = ServeConfig(
            model=str(path), local_workers=2, threads=1, slots=2, context=512, prefix_cache="off", prompt_chunk=chunk,
            measure="never",
        )  # fmt: skip
        with start_serving(config) as serving:
            tokens = serving.service.encode(text)
            found[chunk] = asyncio.run(answers(serving.service, [tokens[7 : 7 + count] for count in LENGTHS]))
    assert all(len(logprobs) == 16 for _, logprobs in found[64])
    for chunk in CHUNKS:
        assert found[chunk] == found[64], chunk
