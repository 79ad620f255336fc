"""Faults of every kind in a cluster of processes under load: nothing may be lost, wrong or left, and what it took.

    python benchmarks/chaos.py [--faults 200] [--seed 1] [--model tiny|smollm2-135m|FILE] [--wire raw|int8|int4] …

Workers are processes of their own behind cables that can be cut; the head is `hyperlane serve`. While clients (the
official `openai` package) ask for answers of every sort, workers are killed, suspended, cut off, broken and told to
leave, while they load, take in prompts, decode, and between requests. Every answer must be the undisturbed one.
`--model tiny` (the default) computes with a toy engine that notices any token in a wrong place. Workers have so little
memory that `--needed` of them at least hold the model together; the first one's process lives through all faults, so
that what gathers in it is seen. Prints a table of the faults; ends with 1 if anything is wrong. Linux.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from hyperlane.bench.machine import describe_machine
from hyperlane.bench.pages import write_figures
from hyperlane.config import Paths, load
from hyperlane.models.download import pull
from hyperlane.testing.chaos.audit import Level, most
from hyperlane.testing.chaos.cluster import WorkerKind
from hyperlane.testing.chaos.outcome import Outcome, Record
from hyperlane.testing.chaos.run import Scene, run_chaos
from hyperlane.testing.chaos.schedule import Kind, Moment, schedule
from hyperlane.testing.tiny_models import write_tiny_model

TINY_LAYERS, TINY_CONTEXT = 6, 1024


def main() -> None:
    """Run, print, and end with what was found."""
    options = _options()
    pieces = [Found.read(path) for path in options.after]
    problems: list[str] = []
    if options.faults:
        here, problems = _run(options)
        pieces.append(here)
    if options.json and options.faults:
        options.json.write_text(json.dumps(asdict(here)), encoding="utf-8")
    both = Found.joined(pieces)
    scene = f"{options.workers} workers of which {options.needed} at least are needed, {options.clients} clients"
    what = f"{len(both.rows)} faults, seed {options.seed}, {options.model}, wire {options.wire}"
    title = f"{what}, {scene}; {describe_machine()}"
    text = "\n".join((title, table(both.rows), summary(both)))
    print(text)
    if options.docs:
        write_figures(options.docs, f"chaos {options.model} {options.wire}", text)
    for problem in problems:
        print(f"WRONG: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


def _run(options: argparse.Namespace) -> tuple[Found, list[str]]:
    """What this piece found, and what of it must not be."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        scene = scene_of(options, Path(folder))
        first, count = options.first, options.faults
        faults = itertools.islice(schedule(options.seed, options.longest), first, first + count)
        outcome = run_chaos(scene, faults, Path(folder), options.seed, _tell if options.verbose else lambda *_: None)
    return Found.of(outcome, time.monotonic() - began_s), outcome.problems()


@dataclass(frozen=True, slots=True)
class Row:
    """One fault, as it is kept; seconds."""

    kind: str
    moment: str
    hit: bool
    gap_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """What one run found, or several together."""

    rows: list[Row]
    counts: dict[str, int]
    took_s: float
    stood_still_s: float
    head: str
    workers: str

    @classmethod
    def of(cls, outcome: Outcome, took_s: float) -> Found:
        """Of one run."""
        tally, before, after = outcome.tally, outcome.before, outcome.after
        counts = {"sent": tally.sent, "ended": tally.ended, "left": tally.abandoned, "wrong": len(tally.wrong)}
        counts |= {"failed": len(tally.failed), "hung": len(outcome.hung), "losses": outcome.status["losses"]}
        at_rest = [most(one.levels.values()) for one in outcome.workers]
        rows = [Row(one.fault.kind, one.fault.moment, one.hit, one.gap_s) for one in outcome.records]
        return cls(rows, counts, took_s, outcome.stood_still_s, _both(before, after), _both(*at_rest))

    @classmethod
    def read(cls, path: Path) -> Found:
        """What `--json` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**data, "rows": [Row(**row) for row in data["rows"]]})

    @classmethod
    def joined(cls, runs: Sequence[Found]) -> Found:
        """Several runs together; at least one."""
        return cls(
            [row for run in runs for row in run.rows],
            {name: sum(run.counts[name] for run in runs) for name in runs[0].counts},
            sum(run.took_s for run in runs),
            sum(run.stood_still_s for run in runs),
            "; ".join(run.head for run in runs),
            "; ".join(run.workers for run in runs),
        )


def scene_of(options: argparse.Namespace, folder: Path) -> Scene:
    """Where it happens, for `tiny`, a model of the catalogue, or a file."""
    tiny = options.model == "tiny"
    kind, context = (WorkerKind(), TINY_CONTEXT) if tiny else (WorkerKind("onnx"), 512)
    if tiny:
        path = write_tiny_model(folder / "tiny.gguf", layers=TINY_LAYERS, context=TINY_CONTEXT)
    else:
        path = Path(options.model) if Path(options.model).exists() else pull(options.model, load(Paths).models)
    needed = {"workers": options.workers, "needed": options.needed}
    return Scene(str(path), kind=kind, wire=options.wire, clients=options.clients, context=context, **needed)


def table(rows: Sequence[Row]) -> str:
    """Gaps by what happened, then by when; of those that hit a worker of the plan, or one that was loading."""
    lines = [f"{'fault':<26} {'count':>6} {'hit':>6} {'median gap':>11} {'worst gap':>10}"]
    groups: list[tuple[str, Iterable[Row]]] = [(kind, [row for row in rows if row.kind == kind]) for kind in Kind]
    groups += [(f"while {moment}", [row for row in rows if row.moment == moment]) for moment in Moment]
    for name, group in [*groups, ("all", rows)]:
        found = list(group)
        gaps = [row.gap_s for row in found if row.hit]
        middle, worst = (f"{median(gaps):.2f} s", f"{max(gaps):.2f} s") if gaps else ("", "")
        lines.append(f"{name:<26} {len(found):>6} {len(gaps):>6} {middle:>11} {worst:>10}".rstrip())
    return "\n".join((*lines, "", *_crossed(rows)))


def _crossed(rows: Sequence[Row]) -> list[str]:
    """Each kind at each moment: how many were run, and how many of them hit."""
    lines = [f"{'hit, of those that were run':<27}" + "".join(f" {moment:>17}" for moment in Moment)]
    for kind in Kind:
        cells = [[row.hit for row in rows if (row.kind, row.moment) == (kind, moment)] for moment in Moment]
        lines.append(f"{kind:<27}" + "".join(f" {f'{sum(cell)} of {len(cell)}':>17}" for cell in cells))
    return lines


def _both(before: Level, after: Level) -> str:
    return (
        f"threads {before.threads} {after.threads}, files {before.files} {after.files}, sockets {before.sockets} "
        f"{after.sockets}, memory {before.memory >> 20} {after.memory >> 20} MiB"
    )


def summary(found: Found) -> str:
    """What became of the requests, and what processes hold."""
    counts = found.counts
    still = f"; nothing on this machine moved for {found.stood_still_s:.0f} s" if found.stood_still_s else ""
    return (
        f"{counts['sent']} requests were sent, {counts['ended']} ended ({counts['left']} were left by their client): "
        f"{counts['wrong']} wrong, {counts['failed']} failed, {counts['hung']} hung; "
        f"{counts['losses']} pipelines lost; {found.took_s:.0f} s{still}\n"
        f"the head before and after: {found.head}\n"
        f"workers without a head, before and after, the most of any: {found.workers}"
    )


def _tell(number: int, record: Record) -> None:
    fault = record.fault
    where = "" if record.hit else " (no worker that was needed)"
    print(
        f"{number:>5} {fault.moment:<17} {fault.kind:<26} {record.gap_s:6.2f} s {record.settled_s:6.2f} s{where}",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200, help="0: put together what `--after` names, and run nothing")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--wire", choices=("raw", "int8", "int4"), default="raw")
    parser.add_argument("--workers", type=int, default=4)
    needed = "workers that the model needs at least, by their memory; 0: each has what is free"
    parser.add_argument("--needed", type=int, choices=(0, 1, 2, 3), default=2, help=needed)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds that a fault lasts at most")
    parser.add_argument("--first", type=int, default=0, help="begin with this fault of the schedule")
    parser.add_argument("--json", type=Path, help="keep what was found here")
    parser.add_argument("--after", type=Path, nargs="*", default=[], help="add what earlier pieces have kept")
    parser.add_argument("--docs", type=Path, help="a page to write the table into, between its marks")
    parser.add_argument("--verbose", action="store_true", help="a line for each fault")
    return parser.parse_args()


if __name__ == "__main__":
    main()
