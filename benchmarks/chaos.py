"""Faults of every kind in a cluster of processes under load: nothing may be lost, wrong or left, and what it took.

    python benchmarks/chaos.py [--faults 200] [--seed 1] [--model tiny|smollm2-135m|FILE] [--wire raw|int8|int4] …

Workers are processes of their own behind cables that can be cut; the head is `hyperlane serve`. While clients (the
official `openai` package) ask for answers of every sort, workers are killed, suspended, cut off, broken and told to
leave, while they load, take in prompts, decode, and between requests. Every answer must be the undisturbed one.
`--model tiny` (the default) computes with a toy engine that notices any token in a wrong place. Prints a table of the
faults; ends with 1 if anything is wrong. Linux.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from hyperlane.bench.machine import describe_machine
from hyperlane.config import Paths, load
from hyperlane.models.download import pull
from hyperlane.testing.chaos.cluster import WorkerKind
from hyperlane.testing.chaos.run import Outcome, Record, Scene, run_chaos
from hyperlane.testing.chaos.schedule import Kind, Moment, schedule
from hyperlane.testing.tiny_models import write_tiny_model

TINY_CONTEXT = 1024


def main() -> None:
    """Run, print, and end with what was found."""
    options = _options()
    print(f"{options.faults} faults, seed {options.seed}, {options.model}, wire {options.wire}; {describe_machine()}")
    with tempfile.TemporaryDirectory() as folder:
        scene = scene_of(options.model, options.wire, options.workers, options.clients, Path(folder))
        faults = itertools.islice(schedule(options.seed, options.longest), options.faults)
        began_s = time.monotonic()
        outcome = run_chaos(scene, faults, Path(folder), options.seed, _tell if options.verbose else lambda *_: None)
    print(table(outcome.records))
    print(summary(outcome, time.monotonic() - began_s))
    problems = outcome.problems()
    for problem in problems:
        print(f"WRONG: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


def scene_of(model: str, wire: str, workers: int | None, clients: int, folder: Path) -> Scene:
    """Where it happens, for `tiny`, a model of the catalogue, or a file."""
    if model == "tiny":
        path = write_tiny_model(folder / "tiny.gguf", context=TINY_CONTEXT)
        return Scene(str(path), workers or 4, WorkerKind(), wire, clients, context=TINY_CONTEXT)
    path = Path(model) if Path(model).exists() else pull(model, load(Paths).models)
    return Scene(str(path), workers or 3, WorkerKind("onnx"), wire, clients, context=512)


def table(records: Sequence[Record]) -> str:
    """Gaps by what happened, then by when."""
    rows = [f"{'fault':<26} {'count':>6} {'hit':>6} {'median gap':>11} {'worst gap':>10}"]
    groups: list[tuple[str, Iterable[Record]]] = [(kind, [r for r in records if r.fault.kind is kind]) for kind in Kind]
    groups += [(f"while {moment}", [r for r in records if r.fault.moment is moment]) for moment in Moment]
    for name, group in [*groups, ("all", records)]:
        found = list(group)
        gaps = [record.gap_s for record in found if record.hit]
        middle, worst = (f"{median(gaps):.2f} s", f"{max(gaps):.2f} s") if gaps else ("", "")
        rows.append(f"{name:<26} {len(found):>6} {len(gaps):>6} {middle:>11} {worst:>10}")
    return "\n".join(rows)


def summary(outcome: Outcome, took_s: float) -> str:
    """What became of the requests, and of the head."""
    tally, before, after = outcome.tally, outcome.before, outcome.after
    return (
        f"{tally.sent} requests were sent, {tally.ended} ended ({tally.abandoned} were left by their client): "
        f"{len(tally.wrong)} wrong, {len(tally.failed)} failed, {len(outcome.hung)} hung; "
        f"{outcome.status['losses']} pipelines lost; {took_s:.0f} s\n"
        f"the head before and after: threads {before.threads} {after.threads}, files {before.files} {after.files}, "
        f"sockets {before.sockets} {after.sockets}, memory {before.memory >> 20} MiB {after.memory >> 20} MiB"
    )


def _tell(number: int, record: Record) -> None:
    fault = record.fault
    where = "" if record.hit else " (not in the plan)"
    print(
        f"{number:>5} {fault.moment:<17} {fault.kind:<26} {record.gap_s:6.2f} s {record.settled_s:6.2f} s{where}",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--wire", choices=("raw", "int8", "int4"), default="raw")
    parser.add_argument("--workers", type=int, help="default: 4 with the tiny model, else 3")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds that a fault lasts at most")
    parser.add_argument("--verbose", action="store_true", help="a line for each fault")
    return parser.parse_args()


if __name__ == "__main__":
    main()
