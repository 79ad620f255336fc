"""What plans predict against what they do, in mixed clusters on a LAN of namespaces. Linux and root.

    python benchmarks/predicted.py [--kind programmed|real] [--only NAME ...] [--json FILE]

With --json a run may be done in parts: the table has all clusters that the file has.

Every cluster is measured, planned for both objectives, and each placement worth it is run: the winners and their
alternatives. Programmed clusters have workers whose engines take a programmed time, so that they may be many; real ones
have the real engine with SmolLM2-135M on at most two workers of one thread. Cables are shaped by the kernel (rate) or
by a relay in user space (delay). Prints a table, and how far predictions were from what came of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predicted_head import Run, Speeds

from hyperlane.bench.machine import describe_machine
from hyperlane.config import Paths, usable_cores
from hyperlane.models.resolve import Library, resolve
from hyperlane.testing.lan import Host, Lan, missing
from hyperlane.testing.lan_relay import Shape
from hyperlane.testing.programmed import DeviceSpeed
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model

LAYERS = 24
PROGRAMMED_MODEL = TinyModel(layers=LAYERS, hidden=512, heads=8, kv_heads=2, ffn=512, vocab=512, context=2048)
REAL_MODEL = "smollm2-135m"
OBJECTIVES = ("latency", "throughput")
WITHIN_S = 170.0


@dataclass(frozen=True, slots=True)
class Worker:
    """One machine. `speed` None: the real engine with one thread. `rate`, `delay_ms`: of its cable."""

    speed: DeviceSpeed | None = None
    memory: str | None = None
    rate: str | None = None
    delay_ms: float = 0.0

    @property
    def shape(self) -> Shape | None:
        """Of a cable that takes time; one that is only slow is the kernel's matter."""
        return Shape(delay_ms=self.delay_ms) if self.delay_ms else None


@dataclass(frozen=True, slots=True)
class Cluster:
    """Some workers and a head."""

    name: str
    workers: tuple[Worker, ...]

    @property
    def is_real(self) -> bool:
        """Whether real engines compute."""
        return any(worker.speed is None for worker in self.workers)


def device(times: float) -> DeviceSpeed:
    """A device so many times slower than the fastest one here: a batch's further rows cost a quarter of the first."""
    return DeviceSpeed(
        layer_ms=0.5 * times,
        row_ms=0.12 * times,
        token_ms=0.02 * times,
        step_ms=0.3,
        embed_ms=0.002 * times,
        project_ms=1.0 * times,
    )


FAST, MIDDLE, SLOW = device(1.0), device(2.0), device(5.0)
SMALL = "95MiB"
"""Holds less than half of the layers."""

CLUSTERS = (
    Cluster("two alike", (Worker(MIDDLE), Worker(MIDDLE))),
    Cluster("fast and slow", (Worker(FAST), Worker(SLOW))),
    Cluster("fast but small, and slow", (Worker(FAST, SMALL), Worker(SLOW))),
    Cluster("three of three speeds", (Worker(FAST), Worker(MIDDLE), Worker(SLOW))),
    Cluster("three, the fast ones small", (Worker(FAST, SMALL), Worker(MIDDLE, SMALL), Worker(SLOW))),
    Cluster("two at 100 Mbit/s", (Worker(MIDDLE, rate="100mbit"), Worker(MIDDLE, rate="100mbit"))),
    Cluster("small ones at 100 Mbit/s", (Worker(FAST, SMALL, "100mbit"), Worker(MIDDLE, None, "100mbit"))),
    Cluster("one 2 ms away", (Worker(FAST, SMALL), Worker(MIDDLE), Worker(FAST, None, None, 2.0))),
    Cluster("fast one 5 ms away", (Worker(FAST, None, None, 5.0), Worker(MIDDLE))),
    Cluster("four alike", (Worker(MIDDLE),) * 4),
    Cluster(
        "four small ones", (Worker(FAST, SMALL), Worker(MIDDLE, SMALL), Worker(MIDDLE, SMALL), Worker(SLOW, SMALL))
    ),
    Cluster(
        "four of mixed cables", (Worker(FAST, SMALL), Worker(FAST, SMALL, "100mbit"), Worker(MIDDLE), Worker(SLOW))
    ),
    Cluster("real: one", (Worker(),)),
    Cluster("real: two", (Worker(), Worker())),
    Cluster("real: two at 100 Mbit/s", (Worker(rate="100mbit"), Worker(rate="100mbit"))),
    Cluster("real: one 2 ms away", (Worker(), Worker(delay_ms=2.0))),
)


# --- running ---------------------------------------------------------------------------------------------------


class Machine:
    """A host of the LAN with a home of its own, and the weights that this machine has."""

    def __init__(self, host: Host, home: Path) -> None:
        self.host = host
        variables = {name: value for name, value in os.environ.items() if not name.startswith("HYPERLANE_")}
        self.environ = {
            **variables,
            "HYPERLANE_HOME": str(home),
            "HYPERLANE_PATHS_CACHE": str(Paths().cache),
            "HYPERLANE_PATHS_MACHINE": host.name,
            "HYPERLANE_WORKER_THREADS": "1",
        }

    def start(self, words: Sequence[str], errors: int | None = None) -> subprocess.Popen[str]:
        """Start a program here."""
        return self.host.start(words, self.environ, errors)


def run_cluster(cluster: Cluster, model: Path, folder: Path, repetitions: int) -> Iterator[Run]:
    """Plan and run one cluster."""
    with Lan() as lan:
        head = Machine(lan.host("head"), folder / "head")
        script = [sys.executable, str(Path(__file__).with_name("predicted_head.py")), str(model)]
        serving = head.start([*script, "--repetitions", str(repetitions)])
        assert serving.stdin is not None
        assert serving.stdout is not None
        token = serving.stdout.readline().strip()
        addresses = [_start_worker(lan, folder, f"w{i}", one, token) for i, one in enumerate(cluster.workers)]
        serving.stdin.write(" ".join(addresses) + "\n")
        serving.stdin.flush()
        for line in serving.stdout:
            yield _revived(json.loads(line))
        if serving.wait(WITHIN_S):
            raise SystemExit(f"{cluster.name}: the head ended with {serving.returncode}")


def _start_worker(lan: Lan, folder: Path, name: str, worker: Worker, token: str) -> str:
    machine = Machine(lan.host(name, worker.rate, worker.shape), folder / name)
    command = worker.speed.command() if worker.speed else [sys.executable, "-m", "hyperlane", "worker"]
    memory = ["--memory", worker.memory] if worker.memory else []
    running = machine.start([*command, "--join", token, *memory], errors=subprocess.PIPE)
    assert running.stderr is not None
    for line in running.stderr:
        if "is ready at" in line:
            return f"{machine.host.address}:7420"
    raise SystemExit(f"the worker {name} did not start")


def _revived(said: dict[str, Any]) -> Run:
    said["predicted"], said["achieved"] = Speeds(**said["predicted"]), Speeds(**said["achieved"])
    return Run(**{**said, "layers": tuple(said["layers"]), "winner_of": tuple(said["winner_of"])})


# --- what came of it -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """One cluster's runs."""

    cluster: str
    runs: tuple[Run, ...]

    def lost(self, objective: str) -> float | None:
        """By how much the chosen placement was slower than the best that was run."""
        chosen = next((run for run in self.runs if objective in run.winner_of), None)
        if chosen is None:
            return None
        return _cost(chosen, objective) / min(_cost(run, objective) for run in self.runs) - 1


def _cost(run: Run, objective: str) -> float:
    return run.achieved.token_s if objective == "latency" else 1 / run.achieved.many_rate


def _errors(results: Sequence[Result], name: str) -> list[float]:
    """How far each prediction was from what was achieved, relative."""
    pairs = [(getattr(run.predicted, name), getattr(run.achieved, name)) for one in results for run in one.runs]
    return [abs(predicted / achieved - 1) for predicted, achieved in pairs]


def print_every(results: Sequence[Result]) -> None:
    """One line for each run."""
    print(
        "| cluster | placement (layers of each worker) | one stream, tokens/s | 4 streams, tokens/s | first token, s |"
    )
    print("|---|---|---|---|---|")
    for result in results:
        for run in result.runs:
            won = "".join(f" **({objective})**" for objective in run.winner_of)
            print(f"| {result.cluster} | {_placement(run)}{won} | {_beside(run)} |")
    print()


def print_clusters(results: Sequence[Result]) -> None:
    """One line for each cluster: what was planned, what it did, and the best of the others that were run."""
    print("| cluster | for one stream | tokens/s | best other | for 4 streams | tokens/s | best other | runs |")
    print("|---|---|---|---|---|---|---|---|")
    for result in results:
        cells = [cell for objective in OBJECTIVES for cell in _chosen(result, objective)]
        print(f"| {result.cluster} | {' | '.join(cells)} | {len(result.runs)} |")
    print()


def print_errors(results: Sequence[Result]) -> None:
    """How far off predictions and choices were."""
    for name, words in (("token_s", "one stream"), ("many_rate", "4 streams"), ("ttft_s", "first token")):
        errors = _errors(results, name)
        print(f"{words}: off by {statistics.median(errors):.1%} (median), {max(errors):.1%} (most), {len(errors)} runs")
    for objective in OBJECTIVES:
        lost = [loss for result in results if (loss := result.lost(objective)) is not None]
        print(
            f"{objective}: what was planned was slower than the best that was run by {max(lost):.1%} at most, "
            f"{len(lost)} clusters"
        )


def _chosen(result: Result, objective: str) -> tuple[str, str, str]:
    chosen = next((run for run in result.runs if objective in run.winner_of), None)
    others = [1 / _cost(run, objective) for run in result.runs if run is not chosen]
    best = f"{max(others):.1f}" if others else "-"
    if chosen is None:
        return "-", "-", best
    one, many = _beside(chosen).split(" | ")[:2]
    return _placement(chosen), one if objective == "latency" else many, best


def _placement(run: Run) -> str:
    return " → ".join(_stage(text) for text in run.layers)


def _stage(layers: str) -> str:
    """`vm:7420@10.77.0.3=0:8` as `w1: 8`: workers are plugged in after the head, which has the first address."""
    node, _, span = layers.rpartition("=")
    first, last = map(int, span.split(":"))
    number = int(node.rpartition(".")[2]) - 2 if "@" in node else 0
    return f"w{number}: {last - first}"


def _beside(run: Run) -> str:
    one, other = run.predicted, run.achieved
    return (
        f"{1 / one.token_s:.1f} → {1 / other.token_s:.1f} | {one.many_rate:.1f} → {other.many_rate:.1f} "
        f"| {one.ttft_s:.2f} → {other.ttft_s:.2f}"
    )


def _kept(file: Path | None) -> list[Result]:
    if file is None or not file.exists():
        return []
    return [Result(one["cluster"], tuple(map(_revived, one["runs"]))) for one in json.loads(file.read_text())]


@contextmanager
def _models() -> Iterator[dict[bool, Path]]:
    """The real model's file and the programmed one's."""
    with tempfile.TemporaryDirectory() as folder:
        yield {
            False: write_tiny_model(Path(folder) / "programmed.gguf", PROGRAMMED_MODEL),
            True: resolve(REAL_MODEL, Library(Paths().models)),
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("programmed", "real"))
    parser.add_argument("--only", nargs="*", help="names of clusters")
    parser.add_argument("--repetitions", type=int, default=2, help="of each workload, of which the median counts")
    parser.add_argument("--every", action="store_true", help="a line for each run, not for each cluster")
    parser.add_argument("--json", type=Path, help="keep the figures in this file, beside those that it has")
    given = parser.parse_args()
    if why := missing():
        raise SystemExit(why)
    chosen = [c for c in CLUSTERS if (not given.only or c.name in given.only)]
    chosen = [c for c in chosen if given.kind is None or c.is_real == (given.kind == "real")]
    results = {one.cluster: one for one in _kept(given.json)}
    with _models() as models:
        for cluster in chosen:
            with tempfile.TemporaryDirectory() as folder:
                runs = tuple(run_cluster(cluster, models[cluster.is_real], Path(folder), given.repetitions))
            results[cluster.name] = Result(cluster.name, runs)
            print(f"{cluster.name}: {len(runs)} placements run", file=sys.stderr, flush=True)
            if given.json:
                given.json.write_text(json.dumps([dataclasses.asdict(result) for result in results.values()], indent=1))
    print(f"{describe_machine()}; {usable_cores()} cores usable\n")
    found = [results[cluster.name] for cluster in CLUSTERS if cluster.name in results]
    for show in (print_every if given.every else print_clusters, print_errors):
        show(found)


if __name__ == "__main__":
    main()
