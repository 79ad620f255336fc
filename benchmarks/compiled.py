"""What compiling the data path saves: the wheel of `make wheel` against the same source interpreted, in turns.

    make wheel && python benchmarks/compiled.py [--wheel FILE] [--repetitions 7] [--stages 2]

Each turn starts a pipeline of one-thread workers from either, and decodes one stream of 250 tokens. Prints the medians
of the overhead of a hop and of tokens/s, and their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from hyperlane.bench.machine import describe_machine
from hyperlane.bench.workload import Workload, run_workload
from hyperlane.config import ServeConfig
from hyperlane.node import start_serving
from hyperlane.wire.compiled import is_compiled

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Turn:
    """One pipeline's figures: microseconds, and tokens per second of one stream."""

    hop_us: float
    decode: float


def measure(stages: int) -> None:
    """In a process of its own: print one `Turn`, and whether it was compiled, as JSON."""
    serving = start_serving(ServeConfig(model="smollm2-135m", local_workers=stages, threads=1, slots=4, context=1024))
    try:
        run_workload(serving.service, Workload(16, 100, 1))
        answer = run_workload(serving.service, Workload(16, 250, 1))
        hop_us = serving.service.status().hop_us
    finally:
        serving.close()
    print(json.dumps({"compiled": is_compiled(), "hop_us": hop_us, "decode": answer.decode_rate}))


def turn(source: Path, stages: int, *, compiled: bool) -> Turn:
    """Measure with the code that lies in this folder."""
    run = subprocess.run(
        [sys.executable, __file__, "--measure", "--stages", str(stages)],
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    said = json.loads(run.stdout.splitlines()[-1])
    if said["compiled"] is not compiled:
        sys.exit(f"{source} is {'not ' * compiled}compiled: make wheel, with a C compiler")
    return Turn(said["hop_us"], said["decode"])


def newest_wheel() -> Path:
    """What `make wheel` left last."""
    wheels = sorted((ROOT / "dist").glob("hyperlane-*-cp*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        sys.exit("there is no compiled wheel in dist/: make wheel, with a C compiler")
    return wheels[-1]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="the compiled wheel; the newest one of dist/ if left out")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.stages)
        return
    wheel = arguments.wheel or newest_wheel()
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        turns: dict[bool, list[Turn]] = {False: [], True: []}
        for _ in range(arguments.repetitions):
            for compiled, source in ((False, ROOT / "src"), (True, Path(folder))):
                turns[compiled].append(turn(source, arguments.stages, compiled=compiled))
                print(f"{'compiled' if compiled else 'interpreted':12} {turns[compiled][-1]}", flush=True)
    print(f"\n{describe_machine()}; {arguments.stages} one-thread stages, medians of {arguments.repetitions}\n")
    print("| | interpreted | compiled | ratio |\n|---|---|---|---|")
    for name, of in (("overhead of a hop, µs", lambda t: t.hop_us), ("one stream, tokens/s", lambda t: t.decode)):
        plain, fast = (statistics.median(map(of, turns[compiled])) for compiled in (False, True))
        print(f"| {name} | {plain:.1f} | {fast:.1f} | {fast / plain:.2f} |")


if __name__ == "__main__":
    main()
