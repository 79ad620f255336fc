"""Times whole pipelines of real worker processes on this machine: what a user gets, without HTTP.

    python benchmarks/pipeline.py [MODEL] [--repetitions 5] [--json FILE]

Prints, for 1 and 2 stages and 1 and 2 threads: prefill of 512 tokens and decode of 128 for 1 and 8 streams, the
overhead of a hop (all of a token's time that is not engine compute, divided by the links of the ring), load time for
the first and second time, and the private memory of each worker.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hyperlane.bench.machine import describe_machine
from hyperlane.bench.pipeline import Figures, measure, workloads
from hyperlane.config import Paths, ServeConfig
from hyperlane.node import start_serving


@dataclass(frozen=True, slots=True)
class Setup:
    """Worker processes on this machine, and compute threads of each."""

    stages: int
    threads: int

    def config(self, model: str, paths: Paths | None = None) -> ServeConfig:
        """Eight slots, so that eight streams decode together."""
        return ServeConfig(
            model=model, local_workers=self.stages, threads=self.threads, slots=8, context=2048, paths=paths or Paths()
        )


def measure_setup(model: str, setup: Setup, repetitions: int) -> Figures:
    """Start the pipeline and measure it."""
    serving = start_serving(setup.config(model))
    try:
        return measure(serving.service, workloads(), repetitions)
    finally:
        serving.close()


def load_times(model: str) -> tuple[float, float]:
    """Seconds until ready with an empty store, and again with the store that the first start left."""
    with tempfile.TemporaryDirectory() as home:
        shared = Paths()
        paths = dataclasses.replace(shared, cache=Path(home) / "cache", state=Path(home) / "state")
        paths.cache.mkdir(parents=True)
        paths.models.symlink_to(shared.models, target_is_directory=True)
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            start_serving(Setup(2, 1).config(model, paths)).close()
            seconds.append(time.perf_counter() - began)
    return seconds[0], seconds[1]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    machine = describe_machine()
    print(f"{arguments.model} on {machine}; medians of {arguments.repetitions}\n")
    print(
        "| stages | threads | prefill | decode, 1 stream | decode, 8 streams | hop µs | private MiB (head, workers) |"
    )
    print("|---|---|---|---|---|---|---|")
    rows = []
    for setup in (Setup(1, 1), Setup(1, 2), Setup(2, 1), Setup(2, 2)):
        row = measure_setup(arguments.model, setup, arguments.repetitions)
        rows.append({**dataclasses.asdict(setup), **dataclasses.asdict(row)})
        memory = " + ".join(f"{mib:.0f}" for mib in row.private_mib)
        print(
            f"| {setup.stages} | {setup.threads} | {row.prefill:.0f} | {row.decode:.1f} | {row.decode_of_many:.0f} "
            f"| {row.hop_us:.0f} | {memory} |",
            flush=True,
        )
    first, second = load_times(arguments.model)
    print(f"\nready with an empty store: {first:.2f} s; second start: {second:.2f} s")
    if arguments.json:
        result = {
            "machine": dataclasses.asdict(machine),
            "rows": rows,
            "load_s": {"first": first, "second": second},
        }
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
