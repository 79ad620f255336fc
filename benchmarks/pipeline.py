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
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from hyperlane.node import Serving, start_serving

from hyperlane.bench.machine import describe_machine, private_bytes
from hyperlane.bench.workload import Workload, run_workload
from hyperlane.config import Paths, ServeConfig

LONG_PROMPT = Workload(prompt_tokens=512, new_tokens=1)
ONE_STREAM = Workload(prompt_tokens=16, new_tokens=129)
EIGHT_STREAMS = Workload(prompt_tokens=16, new_tokens=129, streams=8)


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


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians. Rates in tokens per second."""

    setup: Setup
    prefill: float
    decode: float
    decode_of_8: float
    hop_us: float
    worker_private_mib: tuple[float, ...]


def hop_us(serving: Serving) -> float:
    """Microseconds of a hop in the last steps: (time round the ring − engine time of all stages) / links."""
    status = serving.service.status()
    return (status.ring_us - sum(stage.computed_us for stage in status.stages)) / (len(status.stages) + 1)


def workers_of_this_process() -> list[psutil.Process]:
    """The local worker processes, in order of start."""
    return sorted(psutil.Process().children(), key=lambda process: float(process.create_time()))


def measure(model: str, setup: Setup, repetitions: int) -> Figures:
    """Start the pipeline, warm it up, and take medians."""
    serving = start_serving(setup.config(model))
    try:
        run_workload(serving.service, ONE_STREAM)
        prefill = [run_workload(serving.service, LONG_PROMPT, seed).prefill_rate for seed in range(repetitions)]
        eight = [run_workload(serving.service, EIGHT_STREAMS, seed).decode_rate for seed in range(repetitions)]
        one = [run_workload(serving.service, ONE_STREAM, seed).decode_rate for seed in range(repetitions)]
        return Figures(
            setup=setup,
            prefill=statistics.median(prefill),
            decode=statistics.median(one),
            decode_of_8=statistics.median(eight),
            hop_us=hop_us(serving),
            worker_private_mib=tuple(private_bytes(worker.pid) / 2**20 for worker in workers_of_this_process()),
        )
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
    print("| stages | threads | prefill 512 | decode, 1 stream | decode, 8 streams | hop µs | worker private MiB |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for setup in (Setup(1, 1), Setup(1, 2), Setup(2, 1), Setup(2, 2)):
        row = measure(arguments.model, setup, arguments.repetitions)
        rows.append(row)
        memory = " + ".join(f"{mib:.0f}" for mib in row.worker_private_mib)
        print(
            f"| {setup.stages} | {setup.threads} | {row.prefill:.0f} | {row.decode:.1f} | {row.decode_of_8:.0f} "
            f"| {row.hop_us:.0f} | {memory} |",
            flush=True,
        )
    first, second = load_times(arguments.model)
    print(f"\nready with an empty store: {first:.2f} s; second start: {second:.2f} s")
    if arguments.json:
        result = {
            "machine": dataclasses.asdict(machine),
            "rows": [dataclasses.asdict(row) for row in rows],
            "load_s": {"first": first, "second": second},
        }
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
