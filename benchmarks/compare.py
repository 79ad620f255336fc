"""Hyperlane and llama.cpp RPC on the same file, the same two cores, interleaved: prints ratios of medians.

    python benchmarks/compare.py [MODEL] [--rounds 5] [--json FILE]

Each side has two worker processes of one thread on loopback. llama.cpp's prefill is its better micro-batch of 64 and
512. Builds llama.cpp first (`benchmarks/llamacpp.py`) if that has not been done.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import llamacpp
from pipeline import Setup

from hyperlane.bench.machine import describe_machine
from hyperlane.bench.pipeline import workloads
from hyperlane.bench.workload import run_workload
from hyperlane.config import Paths
from hyperlane.models.resolve import Library, resolve
from hyperlane.node import start_serving

MICRO_BATCHES = (64, 512)
WORK = workloads()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Samples of both sides in tokens per second, taken in turns."""

    what: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median of ours divided by median of theirs."""
        return statistics.median(self.ours) / statistics.median(self.theirs)

    def __str__(self) -> str:
        def spread(samples: tuple[float, ...]) -> str:
            return f"{statistics.median(samples):.1f} [{min(samples):.1f}–{max(samples):.1f}]"

        return f"| {self.what} | {spread(self.ours)} | {spread(self.theirs)} | {self.ratio:.2f} |"


def compare(model: Path, rounds: int) -> tuple[list[Comparison], float]:
    """Interleave `rounds` rounds of both; returns the comparisons and our microseconds of a hop."""
    serving = start_serving(Setup(2, 1).config(str(model)))
    try:
        with llamacpp.rpc_servers(2, 1) as rpc:
            sides: dict[str, tuple[Callable[[int], float], Callable[[], float]]] = {
                "prefill of 512": (
                    lambda seed: run_workload(serving.service, WORK.long_prompt, seed).prefill_rate,
                    lambda: max(
                        llamacpp.bench(model, rpc=rpc, micro_batch=size, decode=0).prefill for size in (64, 512)
                    ),
                ),
                "decode, 8 streams": (
                    lambda seed: run_workload(serving.service, WORK.many_streams, seed).decode_rate,
                    lambda: llamacpp.batched_decode(model, 8, rpc=rpc),
                ),
                "decode, 1 stream": (
                    lambda seed: run_workload(serving.service, WORK.one_stream, seed).decode_rate,
                    lambda: llamacpp.bench(model, rpc=rpc).decode,
                ),
            }
            run_workload(serving.service, WORK.one_stream)
            samples: dict[str, list[tuple[float, float]]] = {what: [] for what in sides}
            for seed in range(rounds):
                for what, (ours, theirs) in sides.items():
                    samples[what].append((ours(seed), theirs()))
        return [
            Comparison(what, *zip(*pairs, strict=True)) for what, pairs in samples.items()
        ], serving.service.status().hop_us
    finally:
        serving.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the samples to this file too")
    arguments = parser.parse_args()
    llamacpp.build()
    machine = describe_machine()
    comparisons, hop = compare(resolve(arguments.model, Library(Paths().models)), arguments.rounds)
    print(f"{arguments.model}, 2 workers of 1 thread over loopback, on {machine}")
    print(f"llama.cpp of llama-cpp-python {llamacpp.VERSION}; tokens/s, medians [extremes] of {arguments.rounds}\n")
    print("| | Hyperlane | llama.cpp RPC | ratio |\n|---|---|---|---|")
    for comparison in comparisons:
        print(comparison)
    print(f"\nhop: {hop:.0f} µs")
    if arguments.json:
        result = {
            "machine": dataclasses.asdict(machine),
            "comparisons": [dataclasses.asdict(comparison) for comparison in comparisons],
            "hop_us": hop,
        }
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
