"""The piece in which a prompt goes through a pipeline: what a plan chooses, and what each other choice does.

    python benchmarks/prompt_chunk.py [MODEL] [--stages 2] [--prompt 512] [--repetitions 5]

Local one-thread stages. Prints for each chunk the predicted and the achieved time to first token (medians) on an idle
pipeline; `*`: what the plan chooses when nobody says.
"""

from __future__ import annotations

import argparse
import statistics

from hyperlane.bench.machine import describe_machine
from hyperlane.bench.workload import Workload, run_workload
from hyperlane.config import ServeConfig
from hyperlane.core import PROMPT_CHUNKS, Prediction
from hyperlane.node import start_serving

CONTEXT = 2048


def first_tokens(
    model: str, stages: int, chunk: int | None, prompt: int, repetitions: int
) -> tuple[Prediction | None, float]:
    """What the plan predicts, and the median time to first token; seconds."""
    config = ServeConfig(
        model=model,
        local_workers=stages,
        threads=1,
        slots=2,
        context=CONTEXT,
        prefix_cache="off",
        prompt_chunk=chunk,
    )
    with start_serving(config) as serving:
        run_workload(serving.service, Workload(prompt, 1))
        samples = [run_workload(serving.service, Workload(prompt, 1), seed) for seed in range(repetitions)]
        return serving.plan.prediction, statistics.median(sample.ttft_s for sample in samples)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    print(
        f"{given.model}, {given.stages} one-thread stages, prompts of {given.prompt}; {describe_machine()}", flush=True
    )
    said, seconds = first_tokens(given.model, given.stages, None, given.prompt, given.repetitions)
    print("| chunk | predicted for 512 | achieved |\n|---|---|---|")
    if said is not None:
        print(f"| {said.chunk_tokens} * | {said.ttft_s:.3f} s | {seconds:.3f} s |", flush=True)
    for chunk in PROMPT_CHUNKS:
        said, seconds = first_tokens(given.model, given.stages, chunk, given.prompt, given.repetitions)
        print(f"| {chunk} | {said.ttft_s if said else 0:.3f} s | {seconds:.3f} s |", flush=True)


if __name__ == "__main__":
    main()
