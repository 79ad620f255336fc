"""Hundreds of streams at once: they queue fairly, all end, and what the server counted is what its clients saw.

    python benchmarks/load.py [--model smollm2-135m] [--clients 200] [--slots 8] [--tokens 32] [--local-workers 2]

`hyperlane serve` with a queue for all clients but those of the last two rows; the clients are the official `openai`
package's, streaming, on the same machine. Ends with 1 if a client was lost or a figure of /metrics is wrong.

- *one after another*: each asks 10 ms after the one before it, so that their order is known;
- *all at once*: also clients that leave after the first token, and such that give too little time;
- *half as many again*: more than the queue holds, and nobody tries twice: the rest is refused, with Retry-After;
- *the same, trying again*: as the official client does of itself, up to 20 times: all are served in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from hyperlane.bench.machine import describe_machine
from hyperlane.config import Paths, load
from hyperlane.models.download import pull
from hyperlane.testing.crowd import Asked, Crowd, End, Way, crowd
from hyperlane.testing.program import Program
from hyperlane.testing.tiny_models import write_tiny_model

MIB = 1 << 20
EVERY = 10
"""Among so many clients of the second row one leaves, and one hurries."""


def main() -> None:
    """Run, print the table, and end with what was found."""
    options = _options()
    print(
        f"{options.clients} clients, {options.slots} slots, {options.tokens} tokens each, {options.model} on "
        f"{options.local_workers} workers of one thread; {describe_machine()}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        runs = _run(options, Path(folder))
    print(_table(runs))
    problems = [f"{name}: {problem}" for name, (seen, _) in runs.items() for problem in _problems(name, seen, options)]
    for problem in problems:
        print(f"WRONG: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


def _run(options: argparse.Namespace, folder: Path) -> dict[str, tuple[Crowd, float]]:
    """By row: what was seen, and the head's memory afterwards, MiB."""
    model = _model(options.model, folder)
    arguments = ("serve", model, "--local-workers", str(options.local_workers), "--slots", str(options.slots))
    environ = {"HYPERLANE_SERVE_QUEUE": str(options.clients - options.slots)}
    with Program(*arguments, "--port", "0", "--no-join", "--context", "512", home=folder, environ=environ) as head:
        found = re.search(r"http://\S+?(?=/v1)", head.wait_for("ready: "))
        assert found is not None
        process = psutil.Process(head.pid)
        asked = Asked(Path(model).stem, options.tokens)
        many = [Way.READS] * options.clients
        mixed = [(Way.LEAVES, Way.HURRIES)[at % 2] if at % EVERY < 2 else Way.READS for at in range(options.clients)]
        rows = {
            "one after another": (Asked(asked.model, options.tokens, gap_s=0.01), many),
            "all at once": (asked, mixed),
            "half as many again": (asked, [Way.READS] * (options.clients * 3 // 2)),
            "the same, trying again": (
                Asked(asked.model, options.tokens, retries=20),
                [Way.READS] * (options.clients * 3 // 2),
            ),
        }
        runs = {}
        for name, (what, ways) in rows.items():
            seen = asyncio.run(crowd(found[0], what, ways))
            runs[name] = seen, process.memory_info().rss / MIB
        return runs


def _model(name: str, folder: Path) -> str:
    if name == "tiny":
        return str(write_tiny_model(folder / "tiny.gguf", context=512))
    return name if Path(name).exists() else str(pull(name, load(Paths).models))


def _problems(name: str, seen: Crowd, options: argparse.Namespace) -> Sequence[str]:
    problems = seen.wrong_figures()
    if seen.ends[End.LOST]:
        problems.append(f"{seen.ends[End.LOST]} clients were lost")
    if name == "one after another" and seen.overtaken() > options.slots:
        problems.append(f"a client was overtaken by {seen.overtaken()}, there are {options.slots} slots")
    refused = seen.ends[End.REFUSED]
    if name == "half as many again" and refused != len(seen.seen) - options.clients:
        problems.append(f"{refused} were refused")
    if name != "half as many again" and refused:
        problems.append(f"{refused} were refused in the end")
    return problems


def _table(runs: dict[str, tuple[Crowd, float]]) -> str:
    head = ("", "clients", "admitted", "refused (tries)", "to the end", "left", "out of time", "lost")
    head += ("first token: least, median, most", "overtaken by", "head's memory")
    rows: list[tuple[object, ...]] = [head, ("---",) * len(head)]
    for name, (seen, memory) in runs.items():
        ends, counted = seen.ends, seen.counted
        firsts = ", ".join(f"{value:.1f} s" for value in seen.first_s())
        overtaken = seen.overtaken() if name == "one after another" else "-"
        rows.append(
            (
                *(name, len(seen.seen), counted["admitted"], counted[End.REFUSED], ends[End.LENGTH] + ends[End.STOP]),
                *(ends[End.CANCELLED], ends[End.DEADLINE], ends[End.LOST], firsts, overtaken, f"{memory:.0f} MiB"),
            )
        )
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="tiny, a name of the catalogue, or a file")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--local-workers", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
