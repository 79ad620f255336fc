"""How much a long prompt that arrives slows down the streams that are running, and what it waits itself.

    python benchmarks/beside.py [MODEL] [--stages 2] [--streams 4] [--prompt 4000] [--repetitions 5] [--json FILE]
    python benchmarks/beside.py --programmed …        engines that wait (as in benchmarks/stages.py) instead of a model

Streams decode over one-thread stages on this machine; after a while a request with a long prompt arrives. Prints the
median and the 95th percentile of the time between two tokens of the streams before it and while it is taken in, and
the long prompt's time to first token beside them and alone; medians of the repetitions.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from hyperlane.bench.machine import describe_machine
from hyperlane.bench.workload import random_prompt
from hyperlane.config import ServeConfig
from hyperlane.core import EventStream, Failed, GenerationRequest, SamplingParams, TextDelta, TextGenerator
from hyperlane.node import start_serving
from hyperlane.testing.waiting_pipeline import waiting_pipeline

BEFORE_TOKENS = 80
"""Tokens of every stream before the long prompt arrives; the first quarter is not counted."""


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds. `before_*` and `during_*`: between two tokens of a stream. `ttft_*`: of the long prompt."""

    before_median: float
    before_p95: float
    during_median: float
    during_p95: float
    ttft_beside: float
    ttft_alone: float


@dataclass(slots=True)
class Reader:
    """A stream and when its tokens came."""

    events: EventStream
    times: list[float] = field(default_factory=list)

    async def read(self, until: int = 1 << 30) -> None:
        """Until it has so many tokens, or ends. Raises what it failed with."""
        async for event in self.events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, TextDelta):
                self.times += [time.perf_counter()] * len(event.tokens)
                if len(self.times) >= until:
                    return

    def gaps(self, begin: float, end: float) -> list[float]:
        """Between tokens of an interval."""
        times = [when for when in self.times if begin <= when <= end]
        return [later - earlier for earlier, later in itertools.pairwise(times)]


def submit(generator: TextGenerator, length: int, tokens: int, chance: random.Random) -> Reader:
    """A greedy request with a random prompt."""
    prompt = random_prompt(generator.facts.vocab, length, chance)
    params = SamplingParams(temperature=0.0)
    return Reader(generator.submit(GenerationRequest("beside", prompt, params, max_tokens=tokens, ignore_eos=True)))


async def one_round(generator: TextGenerator, streams: int, prompt: int, chance: random.Random) -> Round:
    """The long prompt beside streams, then alone."""
    readers = [submit(generator, 16, generator.context - 20, chance) for _ in range(streams)]
    reading = [asyncio.create_task(reader.read()) for reader in readers]
    while min(len(reader.times) for reader in readers) < BEFORE_TOKENS:
        await asyncio.wait(reading, timeout=0.05)
    began = readers[0].times[BEFORE_TOKENS // 4]
    arrived = time.perf_counter()
    long = submit(generator, prompt, 1, chance)
    await long.read(1)
    first = long.times[0]
    for reader in readers:
        reader.events.cancel()
    await asyncio.gather(*reading)
    before = [gap for reader in readers for gap in reader.gaps(began, arrived)]
    during = [gap for reader in readers for gap in reader.gaps(arrived, first)]
    again = time.perf_counter()
    alone = submit(generator, prompt, 1, chance)
    await alone.read(1)
    return Round(
        statistics.median(before),
        percentile95(before),
        statistics.median(during),
        percentile95(during),
        first - arrived,
        alone.times[0] - again,
    )


def percentile95(values: Sequence[float]) -> float:
    """The value that 95 of 100 do not exceed."""
    return sorted(values)[len(values) * 95 // 100]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--programmed", action="store_true", help="engines that wait instead of a model")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=4000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    given = parser.parse_args()
    config = ServeConfig(
        model=given.model,
        local_workers=given.stages,
        threads=1,
        slots=given.streams + 1,
        context=given.prompt + 2048,
        prefix_cache="off",
    )
    chance = random.Random(0)
    with ExitStack() as parts:
        if given.programmed:
            pipeline = waiting_pipeline(given.stages, config.slots, given.prompt + 2048)
            service: TextGenerator = parts.enter_context(pipeline)
        else:
            service = parts.enter_context(start_serving(config)).service
        rounds = [
            asyncio.run(one_round(service, given.streams, given.prompt, chance)) for _ in range(given.repetitions)
        ]
    name = "engines that wait" if given.programmed else given.model
    middle = {
        name.name: statistics.median(getattr(one, name.name) for one in rounds) for name in dataclasses.fields(Round)
    }
    result = Round(**middle)
    print(f"{name} over {given.stages} one-thread stage(s), {given.streams} stream(s), on {describe_machine()}\n")
    print("| | median | 95th percentile |\n|---|---|---|")
    print(f"| between two tokens, before | {result.before_median * 1e3:.1f} ms | {result.before_p95 * 1e3:.1f} ms |")
    print(
        f"| between two tokens, while {given.prompt} tokens are taken in | {result.during_median * 1e3:.1f} ms "
        f"| {result.during_p95 * 1e3:.1f} ms |"
    )
    print(
        f"| ratio | {result.during_median / result.before_median:.2f} | {result.during_p95 / result.before_p95:.2f} |"
    )
    print(f"\nthe prompt's first token: {result.ttft_beside:.1f} s beside the streams, {result.ttft_alone:.1f} s alone")
    if given.json:
        report = {
            "machine": dataclasses.asdict(describe_machine()),
            "rounds": [dataclasses.asdict(one) for one in rounds],
        }
        given.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
