"""Prompts of several lengths, one stream and many, run against whatever answers. Knows no generator and no endpoint."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from hyperlane.bench.workload import Sample, Workload

DECODE_PROMPT = 16
"""Tokens of the prompts of streams whose decoding is measured."""

Run = Callable[[Workload, int], Sample]
"""Runs a workload once, with prompts of its own for each number."""


@dataclass(frozen=True, slots=True)
class Suite:
    """What is run. `new_tokens`: decoded by each stream; medians are taken over `repetitions`."""

    prompts: tuple[int, ...] = (128, 512)
    new_tokens: int = 128
    streams: tuple[int, ...] = (1, 8)
    repetitions: int = 5


@dataclass(frozen=True, slots=True)
class PromptFigure:
    """A prompt of `tokens` tokens, as whoever answers counts them; `rate`: tokens per second until the first token."""

    tokens: int
    ttft_s: float
    rate: float


@dataclass(frozen=True, slots=True)
class DecodeFigure:
    """Streams that decode at once: tokens per second of all together, and between two tokens of one of them."""

    streams: int
    rate: float
    token_ms: float
    ttft_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians of the repetitions."""

    prompts: tuple[PromptFigure, ...]
    decodes: tuple[DecodeFigure, ...]


def measure(run: Run, suite: Suite, after: Callable[[Workload], None] = lambda _: None) -> Figures:
    """Warm up, then run everything. `after`: called after the last repetition of each workload.

    Raises:
        HyperlaneError: a request was refused or failed.

    """
    run(Workload(DECODE_PROMPT, 8), 0)
    prompts = [_prompt(run, Workload(length, 1), suite.repetitions, after) for length in suite.prompts]
    decodes = [
        _decode(run, Workload(DECODE_PROMPT, suite.new_tokens + 1, streams), suite.repetitions, after)
        for streams in suite.streams
    ]
    return Figures(tuple(prompts), tuple(decodes))


def _samples(run: Run, workload: Workload, repetitions: int, after: Callable[[Workload], None]) -> list[Sample]:
    samples = [run(workload, number) for number in range(repetitions)]
    after(workload)
    return samples


def _prompt(run: Run, workload: Workload, repetitions: int, after: Callable[[Workload], None]) -> PromptFigure:
    samples = _samples(run, workload, repetitions, after)
    return PromptFigure(
        tokens=round(statistics.median(sample.prompt_tokens for sample in samples)),
        ttft_s=statistics.median(sample.ttft_s for sample in samples),
        rate=statistics.median(sample.prefill_rate for sample in samples),
    )


def _decode(run: Run, workload: Workload, repetitions: int, after: Callable[[Workload], None]) -> DecodeFigure:
    samples = _samples(run, workload, repetitions, after)
    rate = statistics.median(sample.decode_rate for sample in samples)
    return DecodeFigure(
        streams=workload.streams,
        rate=rate,
        token_ms=1e3 * workload.streams / rate if rate else 0.0,
        ttft_s=statistics.median(sample.ttft_s for sample in samples),
    )
