"""How long hops take while many streams are served through the API, at the median and at the 99th percentile.

    python benchmarks/hop_tail.py [--streams 16] [--tokens 300] [--repetitions 5] [--workers 1]

Real processes, but engines that compute nothing and wait as long as a small model takes (32 layers of 0.3 ms and 1 ms
for a step, the same for many rows, as on a device that is bound by its memory), so that the cores are free for what is
measured: the official client's streams, HTTP, head, links and stages.

A hop: what of a decode frame's way round the ring is not engine time, divided by the links, over the last 256 frames.
Frames that others were in flight with do not count, since they may have waited for those: with several workers that
is most of them. The median of the repetitions is printed, and their extremes.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from hyperlane.bench.machine import describe_machine
from hyperlane.testing.crowd import Asked, End, Way, crowd
from hyperlane.testing.program import Program
from hyperlane.testing.programmed import DeviceSpeed
from hyperlane.testing.tiny_models import write_tiny_model
from hyperlane.testing.toy_cluster import ToyWorkers

SPEED = DeviceSpeed(layer_ms=0.3, step_ms=1.0)


@contextmanager
def served(workers: int, streams: int) -> Iterator[tuple[str, str]]:
    """A server over so many programmed workers: its URL, and the model's name."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = write_tiny_model(folder / "tiny.gguf", layers=32, context=512)
        toys = ToyWorkers(SPEED.command(), folder)
        stack.callback(toys.stop)
        named = [word for _ in range(workers) for word in ("--worker", str(toys.start()))]
        options = ("--port", "0", "--no-join", "--context", "512", "--slots", str(streams))
        head = stack.enter_context(Program("serve", str(model), *named, *options, home=folder / "home"))
        found = re.search(r"http://\S+?(?=/v1)", head.wait_for("ready: "))
        assert found is not None
        yield found[0], model.stem


def one_round(url: str, model: str, streams: int, tokens: int) -> tuple[float, float]:
    """Microseconds: median, 99th percentile."""
    seen = asyncio.run(crowd(url, Asked(model, tokens), [Way.READS] * streams))
    if seen.ends[End.LENGTH] != streams:
        raise SystemExit(f"of {streams} streams {seen.ends[End.LENGTH]} came to their end: {dict(seen.ends)}")
    status = httpx.get(f"{url}/status", timeout=10).json()
    return status["hop_us"], status["hop_p99_us"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    print(f"{options.streams} streams over {options.workers} workers; {describe_machine()}\n")
    with served(options.workers, options.streams) as (url, model):
        rounds = [one_round(url, model, options.streams, options.tokens) for _ in range(options.repetitions)]
    print("| overhead of a hop | µs | least to most |\n|---|---|---|")
    for name, values in zip(("median", "99th percentile"), zip(*rounds, strict=True), strict=True):
        print(f"| {name} | {statistics.median(values):.0f} | {min(values):.0f} to {max(values):.0f} |")


if __name__ == "__main__":
    main()
