"""What more stages give: time to first token of a long prompt, and tokens per second of many streams.

    python benchmarks/stages.py [MODEL] [--prompt 2000] [--streams 16] [--repetitions 5] [--json FILE]
    python benchmarks/stages.py --programmed [--counts 1 2 4]

With a model: worker processes of one thread each on this machine, 1 and 2 of them. With --programmed: stages in this
process whose engines wait for as long as such a stage takes (0.0042 s for a frame, and 0.00195 s for each token of a
prompt and 0.0036 s for each decode row, divided by the number of stages), so that more stages than cores can be timed.

A prompt's best time is one stage's time divided by the number of stages, and one chunk at such a stage. Prints
medians; the pipelines take turns in every repetition.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hyperlane.bench.machine import describe_machine
from hyperlane.bench.timeline import timeline
from hyperlane.bench.workload import Workload, run_workload
from hyperlane.config import ServeConfig
from hyperlane.head.service import HeadService
from hyperlane.node import start_serving
from hyperlane.testing.waiting_pipeline import CHUNK, waiting_pipeline


@dataclass(frozen=True, slots=True)
class Result:
    """Of so many stages. Seconds, tokens per second; `bubble`: of the stages' time while the prompt was computed."""

    stages: int
    ttft_s: float
    bubble: float
    rate: float


@contextmanager
def real(model: str, stages: int, streams: int, context: int) -> Iterator[HeadService]:
    """A head over worker processes of this machine."""
    config = ServeConfig(
        model=model,
        local_workers=stages,
        threads=1,
        slots=streams,
        context=context,
        prompt_chunk=CHUNK,
        prefix_cache="off",
    )
    with start_serving(config) as serving:
        yield serving.service


def one_round(service: HeadService, stages: int, prompt: int, streams: int) -> Result:
    """The prompt, then the streams."""
    seen = service.recent_frames()
    first = run_workload(service, Workload(prompt, 1))
    frames = [frame for frame in service.recent_frames() if not seen or frame.left_s > seen[-1].left_s]
    many = run_workload(service, Workload(16, 65, streams))
    return Result(stages, first.ttft_s, timeline(frames).bubble, many.decode_rate)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--programmed", action="store_true", help="engines that wait instead of a model")
    parser.add_argument("--counts", type=int, nargs="+", help="numbers of stages, the first one 1")
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    given = parser.parse_args()
    counts = given.counts or ([1, 2, 4] if given.programmed else [1, 2])
    context = given.prompt + 128
    with ExitStack() as parts:
        pipelines = [
            parts.enter_context(
                waiting_pipeline(count, given.streams, context)
                if given.programmed
                else real(given.model, count, given.streams, context)
            )
            for count in counts
        ]
        for pipeline in pipelines:
            one_round(pipeline, 1, 64, 2)
        rounds = [
            [
                one_round(pipeline, count, given.prompt, given.streams)
                for count, pipeline in zip(counts, pipelines, strict=True)
            ]
            for _ in range(given.repetitions)
        ]
    results = [median(list(same)) for same in zip(*rounds, strict=True)]
    name = "engines that wait" if given.programmed else f"{given.model}, one-thread stages"
    print(f"{name}, on {describe_machine()}; medians of {given.repetitions}\n")
    print(table(results, given.prompt, given.streams))
    if given.json:
        report = {
            "machine": dataclasses.asdict(describe_machine()),
            "rows": [dataclasses.asdict(one) for one in results],
        }
        given.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


def median(same: Sequence[Result]) -> Result:
    """Of several rounds of one pipeline."""
    middle = {name: statistics.median(getattr(one, name) for one in same) for name in ("ttft_s", "bubble", "rate")}
    return Result(same[0].stages, **middle)


def table(results: Sequence[Result], prompt: int, streams: int) -> str:
    """Each beside the first one, of one stage."""
    alone = results[0]
    chunk_s = alone.ttft_s * CHUNK / prompt
    head = f"| stages | prompt of {prompt}, TTFT | best | TTFT ÷ best | bubble | {streams} streams | × one stage |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for one in results:
        best = (alone.ttft_s + chunk_s) / one.stages if one.stages > 1 else alone.ttft_s
        rows.append(
            f"| {one.stages} | {one.ttft_s:.2f} s | {best:.2f} s | {one.ttft_s / best:.2f} | {one.bubble:.0%} "
            f"| {one.rate:.0f} tokens/s | {one.rate / alone.rate:.2f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
