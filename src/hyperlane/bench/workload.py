"""Runs a workload of equal requests against a generator and times it. Knows nothing of what is behind the generator."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hyperlane.core import Failed, Finished, GenerationRequest, SamplingParams, TextDelta, TextGenerator

_runs = itertools.count()

FIRST_PLAIN_TOKEN = 300
"""Random prompts draw ids from here on: below lie control and byte tokens in the vocabularies we know."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`streams` requests at once, each of `prompt_tokens` random tokens and exactly `new_tokens` greedy ones."""

    prompt_tokens: int
    new_tokens: int
    streams: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One run.

    `ttft_s`: median over the streams. `prefill_rate`: prompt tokens per second until every stream has its first token.
    `decode_rate`: tokens per second of all streams while all of them decode (0 with one new token each).
    `prompt_tokens`: of one prompt.
    """

    ttft_s: float
    prefill_rate: float
    decode_rate: float
    prompt_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When a stream's tokens came: (seconds, how many)."""

    times: tuple[tuple[float, float], ...]

    @property
    def first(self) -> float:
        """When the first came."""
        return self.times[0][0]

    @property
    def last(self) -> float:
        """When the last came."""
        return self.times[-1][0]

    def within(self, after: float, until: float) -> float:
        """Tokens that came later than `after`, up to `until`."""
        return sum(count for when, count in self.times if after < when <= until)


def random_prompt(vocab: int, length: int, rng: random.Random) -> tuple[int, ...]:
    """`length` token ids without control tokens."""
    first = min(FIRST_PLAIN_TOKEN, vocab // 2)
    return tuple(rng.randrange(first, vocab) for _ in range(length))


async def _read(generator: TextGenerator, request: GenerationRequest) -> Arrivals:
    times = []
    async for event in generator.submit(request):
        match event:
            case TextDelta(tokens=tokens) if tokens:
                times.append((time.perf_counter(), len(tokens)))
            case Failed(error=error):
                raise error
            case Finished() | TextDelta():
                pass
    return Arrivals(tuple(times))


async def _run(generator: TextGenerator, workload: Workload, rng: random.Random, *, primed: bool) -> Sample:
    requests = [
        GenerationRequest(
            request_id=f"bench-{number}",
            prompt=random_prompt(generator.facts.vocab, workload.prompt_tokens, rng),
            sampling=SamplingParams(temperature=0.0),
            max_tokens=workload.new_tokens,
            ignore_eos=True,
        )
        for number in range(workload.streams)
    ]
    if primed:
        firsts = (replace(request, request_id=f"{request.request_id}-first", max_tokens=1) for request in requests)
        await asyncio.gather(*(_read(generator, request) for request in firsts))
    began = time.perf_counter()
    streams = await asyncio.gather(*(_read(generator, request) for request in requests))
    return sample_of(streams, began, workload.streams * workload.prompt_tokens)


def sample_of(streams: Sequence[Arrivals], began: float, prompt_tokens: int) -> Sample:
    """What streams that were asked for at the same time did; `prompt_tokens`: of all of them."""
    all_decode = max(stream.first for stream in streams)
    first_ends = min(stream.last for stream in streams)
    decoded = sum(stream.within(all_decode, first_ends) for stream in streams)
    return Sample(
        ttft_s=statistics.median(stream.first for stream in streams) - began,
        prefill_rate=prompt_tokens / (all_decode - began),
        decode_rate=decoded / (first_ends - all_decode) if first_ends > all_decode else 0.0,
        prompt_tokens=prompt_tokens / len(streams),
    )


def run_workload(generator: TextGenerator, workload: Workload, seed: int = 0, *, primed: bool = False) -> Sample:
    """Run once, with prompts that no run of this process had before: no slot holds their beginning.

    `primed`: that the slots hold them is seen to before, so that all streams decode at once from the beginning.

    Raises:
        HyperlaneError: a request was refused or failed.

    """
    return asyncio.run(_run(generator, workload, random.Random(f"{seed} {next(_runs)}"), primed=primed))
