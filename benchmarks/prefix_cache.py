"""What the prefix cache saves in a conversation, and how many answers it changes.

    python benchmarks/prefix_cache.py [MODEL] [--stages 2] [--conversations 12] [--turns 3] [--json FILE]

The same conversations (pieces of this project's documentation as the user's turns, greedy answers of 64 tokens) run
through a pipeline with each setting of --prefix-cache. A turn is the conversation so far with its answers as `off` gave
them, so that all settings are asked the same. Prints the median time to first token of the first and of later turns,
the share of prompt tokens that was not computed, and the answers of later turns that differ from those of `off`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperlane.bench.machine import describe_machine
from hyperlane.config import ServeConfig
from hyperlane.core import Failed, Finished, GenerationRequest, SamplingParams, TextDelta, TextGenerator
from hyperlane.node import start_serving

NEW_TOKENS, TURN_TOKENS = 64, 100
TEXT = Path(__file__).parents[1] / "docs" / "planning.md"


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn's: its tokens, when the first came (seconds), and the prompt's tokens, all and not computed."""

    tokens: tuple[int, ...]
    ttft_s: float
    prompt: int
    cached: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one setting."""

    prefix_cache: str
    first_turn_s: float
    later_turns_s: float
    not_computed: float
    answers: int
    differing: int


async def ask(generator: TextGenerator, prompt: Sequence[int]) -> Answer:
    """One greedy answer. Raises HyperlaneError when the request fails."""
    request = GenerationRequest("turn", tuple(prompt), SamplingParams(temperature=0.0), NEW_TOKENS, ignore_eos=True)
    tokens: list[int] = []
    async for event in generator.submit(request):
        match event:
            case TextDelta():
                tokens += event.tokens
            case Failed(error=error):
                raise error
            case Finished(usage=usage, timings=times):
                return Answer(tuple(tokens), times.ttft_s, usage.prompt_tokens, usage.cached_tokens)
    raise AssertionError("a stream ended without its last event")


async def converse(generator: TextGenerator, turns: Sequence[Sequence[int]], said: list[Answer]) -> list[Answer]:
    """A conversation's answers; `said`: those that its prompts hold, or none yet for the ones given now."""
    answers: list[Answer] = []
    prompt: list[int] = []
    for index, turn in enumerate(turns):
        prompt += turn
        answers.append(await ask(generator, prompt))
        prompt += (said or answers)[index].tokens
    return answers


def conversations(generator: TextGenerator, count: int, turns: int) -> list[list[Sequence[int]]]:
    """Turns of so many tokens, no two conversations with the same."""
    tokens = generator.encode(TEXT.read_text(encoding="utf-8"))
    pieces = [tokens[start : start + TURN_TOKENS] for start in range(0, len(tokens) - TURN_TOKENS, TURN_TOKENS)]
    if len(pieces) < count * turns:
        raise SystemExit(f"{TEXT.name} is enough for {len(pieces)} turns; ask for fewer conversations")
    return [list(pieces[index * turns : (index + 1) * turns]) for index in range(count)]


def measure(arguments: argparse.Namespace, cache: str, said: list[list[Answer]]) -> list[list[Answer]]:
    """Every conversation with one setting."""
    config = ServeConfig(
        model=arguments.model, local_workers=arguments.stages, threads=1, slots=4, context=1024, prefix_cache=cache
    )
    with start_serving(config) as serving:
        talks = conversations(serving.service, arguments.conversations, arguments.turns)
        return [
            asyncio.run(converse(serving.service, talk, said[index] if said else []))
            for index, talk in enumerate(talks)
        ]


def figures(cache: str, found: list[list[Answer]], plain: list[list[Answer]]) -> Figures:
    """What a setting did, beside the answers of `off`."""
    later = [answer for talk in found for answer in talk[1:]]
    expected = [answer for talk in plain for answer in talk[1:]]
    return Figures(
        prefix_cache=cache,
        first_turn_s=statistics.median(talk[0].ttft_s for talk in found),
        later_turns_s=statistics.median(answer.ttft_s for answer in later),
        not_computed=sum(answer.cached for answer in later) / sum(answer.prompt for answer in later),
        answers=len(later),
        differing=sum(one.tokens != other.tokens for one, other in zip(later, expected, strict=True)),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    print(f"{arguments.model}, {arguments.stages} one-thread stages, on {describe_machine()}\n")
    print("| --prefix-cache | first turn, TTFT | later turns, TTFT | prompt not computed | answers that differ |")
    print("|---|---|---|---|---|")
    plain: list[list[Answer]] = []
    rows = []
    for cache in ("off", "prompts", "all"):
        found = measure(arguments, cache, plain)
        plain = plain or found
        row = figures(cache, found, plain)
        rows.append(dataclasses.asdict(row))
        print(
            f"| {cache} | {row.first_turn_s:.2f} s | {row.later_turns_s:.2f} s | {row.not_computed:.0%} "
            f"| {row.differing} of {row.answers} |",
            flush=True,
        )
    if arguments.json:
        report = {"machine": dataclasses.asdict(describe_machine()), "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
