"""Hours of steady and bursty load with a fault every minute: is memory flat, do answers stay as quick.

    python benchmarks/soak.py [--hours 1] [--model smollm2-135m] [--workers 3] [--rest 6] [--every 60] [--json FILE]
    python benchmarks/soak.py --read FILE

As `benchmarks/chaos.py`, but slowly: clients rest between requests, and every few minutes they do not for a while.
Faults that end a process happen to the last worker alone, so that the memory of the others is seen all along; all else
happens to all. The memory of every process is read, mapped files aside; its slope is that of a straight line through
what was read, the first minutes aside, and of one through the last third of that, where what only fills up is full.
Prints the slopes and the latencies by hour (`--window` minutes); ends with 1 if an answer was wrong, lost or late for
ever, or if any process holds more at the end than at the beginning. Linux.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

from chaos import Found, scene_of, summary

from hyperlane.bench.machine import describe_machine
from hyperlane.bench.pages import write_figures
from hyperlane.testing.chaos.audit import Level, levels, slope_per_hour
from hyperlane.testing.chaos.outcome import Outcome, Record
from hyperlane.testing.chaos.run import Running, finish, running, strike_one
from hyperlane.testing.chaos.schedule import Fault, schedule

SAMPLE_S = 10.0
SETTLING_S = 120.0
"""A process fills its pools and caches meanwhile; not part of its slope."""

ENOUGH = 12
"""Fewer samples of a process make no slope."""

BURST_EVERY_S, BURST_S = 300.0, 20.0
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Slope:
    """Of a process: so many samples, MiB per hour over all and over their last third, MiB at the end."""

    samples: int
    whole: float
    last_third: float | None
    end: float


@dataclass(slots=True)
class Diary:
    """What was read: seconds since the start, and levels of processes by name and number."""

    began_s: float = field(default_factory=time.monotonic)
    samples: list[tuple[float, dict[str, Level]]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    def note(self, here: Running) -> None:
        """Read every process."""
        processes = here.processes()
        found = levels(processes.values())
        named = {f"{name} ({one.pid})": found[one.pid] for name, one in processes.items() if one.pid in found}
        self.samples.append((time.monotonic() - self.began_s, named))

    @classmethod
    def read(cls, path: Path) -> Diary:
        """The samples that `--json` wrote."""
        samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
        return cls(samples=[(at_s, {name: Level(**held) for name, held in found.items()}) for at_s, found in samples])

    def slopes(self) -> dict[str, Slope]:
        """By process, of those that lived long enough."""
        points: dict[str, list[tuple[float, float]]] = {}
        for at_s, found in self.samples:
            for name, level in found.items():
                points.setdefault(name, []).append((at_s, level.memory / MIB))
        slopes = {}
        for name, known in points.items():
            settled = [point for point in known if point[0] > known[0][0] + SETTLING_S]
            if len(settled) >= ENOUGH:
                last = settled[-len(settled) // 3 :]
                at_last = slope_per_hour(last) if len(last) >= ENOUGH else None
                slopes[name] = Slope(len(settled), slope_per_hour(settled), at_last, settled[-1][1])
        return slopes


def main() -> None:
    """Run, and print what it showed."""
    options = _options()
    if options.read:
        _again(options)
        return
    hours = f"{options.hours:g} hours, a fault every {options.every:g} s, seed {options.seed}"
    title = (
        f"{hours}, {options.model}, {options.workers} workers, {options.needed} needed at least; {describe_machine()}"
    )
    print(title, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        outcome, diary = _soak(options, Path(folder))
    began_s = diary.began_s
    found = [
        memory_table(diary),
        latency_table(outcome.tally.latencies_s, began_s, options.window * 60),
        summary(Found.of(outcome, time.monotonic() - began_s)),
        f"{len(diary.records)} faults; the longest gap was {max(one.gap_s for one in diary.records):.2f} s",
    ]
    print("\n".join(found))
    if options.docs:
        write_figures(options.docs, f"soak {options.model}", "\n".join((title, *found)))
    if options.json:
        data = {"samples": [(at_s, {k: asdict(v) for k, v in one.items()}) for at_s, one in diary.samples]}
        data |= {"latencies_s": [(at_s - began_s, took_s) for at_s, took_s in outcome.tally.latencies_s]}
        options.json.write_text(json.dumps(data), encoding="utf-8")
    problems = outcome.problems()
    for problem in problems:
        print(f"WRONG: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


def _again(options: argparse.Namespace) -> None:
    """The memory of an earlier soak, from what it has kept."""
    text = memory_table(Diary.read(options.read))
    print(text)
    if options.docs:
        write_figures(options.docs, f"soak {options.model} memory", text)


def memory_table(diary: Diary) -> str:
    """Slopes: the head's, and those of all worker processes that lived long enough together."""
    slopes = diary.slopes()
    rows = [f"{'process':<24} {'minutes':>8} {'MiB per hour':>13} {'in the last third':>18} {'MiB at the end':>15}"]
    for name, slope in slopes.items():
        minutes = slope.samples * SAMPLE_S / 60
        last = "" if slope.last_third is None else f"{slope.last_third:.2f}"
        rows.append(f"{name:<24} {minutes:>8.0f} {slope.whole:>13.2f} {last:>18} {slope.end:>15.1f}")
    workers = [slope.whole for name, slope in slopes.items() if not name.startswith("head")]
    if workers:
        rows.append(f"{'median of the workers':<24} {'':>8} {median(workers):>13.2f}")
    return "\n".join(rows)


def latency_table(latencies_s: Sequence[tuple[float, float]], began_s: float, window_s: float) -> str:
    """Of whole requests, by when they began."""
    rows = [f"{'minutes':<12} {'requests':>9} {'median':>8} {'90 %':>8} {'99 %':>8} {'most':>8}"]
    windows: dict[int, list[float]] = {}
    for at_s, took_s in latencies_s:
        windows.setdefault(int((at_s - began_s) // window_s), []).append(took_s)
    for number, took in sorted(windows.items()):
        ranked = sorted(took)
        shares = "".join(
            f" {ranked[min(len(ranked) - 1, int(len(ranked) * share))]:>6.2f} s" for share in (0.5, 0.9, 0.99)
        )
        span = f"{number * window_s / 60:.0f} to {(number + 1) * window_s / 60:.0f}"
        rows.append(f"{span:<12} {len(ranked):>9}{shares} {ranked[-1]:>6.2f} s")
    return "\n".join(rows)


def _soak(options: argparse.Namespace, folder: Path) -> tuple[Outcome, Diary]:
    scene = replace(scene_of(options, folder), lasting=options.workers - 1)
    faults = schedule(options.seed, longest_s=5.0)
    with running(scene, folder) as here:
        here.load.learn()
        here.until(here.is_ready)
        before, diary = here.head_level(), Diary()
        here.load.rest_s = options.rest
        here.load.start(options.clients, options.seed)
        end_s = diary.began_s + 3600 * options.hours
        while time.monotonic() < end_s:
            _one_round(here, next(faults), diary, options)
        outcome = finish(here, diary.records, before)
    return outcome, diary


def _one_round(here: Running, fault: Fault, diary: Diary, options: argparse.Namespace) -> None:
    """A fault, and quiet until it is time for the next one."""
    began_s = time.monotonic()
    diary.records.append(strike_one(here, fault))
    while time.monotonic() < began_s + options.every:
        is_burst = (time.monotonic() - diary.began_s) % BURST_EVERY_S < BURST_S
        here.load.rest_s = 0.0 if is_burst else options.rest
        diary.note(here)
        until_s = time.monotonic() + SAMPLE_S
        here.until(lambda: time.monotonic() > until_s)  # noqa: B023 (called at once)
    minutes = (time.monotonic() - diary.began_s) / 60
    tally, last = here.load.tally, diary.records[-1]
    print(
        f"{minutes:6.1f} min: {tally.ended} requests, {len(tally.wrong)} wrong, {len(tally.failed)} failed; "
        f"{last.fault.kind} while {last.fault.moment}: gap {last.gap_s:.2f} s",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--wire", choices=("raw", "int8", "int4"), default="raw")
    parser.add_argument("--workers", type=int, default=3)
    needed = "workers that the model needs at least, by their memory; 0: each has what is free"
    parser.add_argument("--needed", type=int, choices=(0, 1, 2, 3), default=2, help=needed)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rest", type=float, default=6.0, help="seconds that each client rests between requests")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between faults")
    parser.add_argument("--window", type=float, default=60.0, help="minutes of a line of the latencies")
    parser.add_argument("--docs", type=Path, help="a page to write what was found into, between its marks")
    parser.add_argument("--json", type=Path, help="write all that was read here")
    parser.add_argument("--read", type=Path, help="run nothing; print the memory of an earlier soak that wrote this")
    return parser.parse_args()


if __name__ == "__main__":
    main()
