"""What it gives that a stage receives the next large frame and sends the last one while it computes.

    python benchmarks/overlap.py [--rates 100mbit 1gbit 2.5gbit] [--buffers 128 0] [--prompt 1024]

Two stages in this process whose engines wait as long as a device might take (1.5 ms for a frame and 0.15 ms for each
of its tokens), with hidden states of 4,096 float32 values, over real TCP on the loopback of a network namespace of its
own, which `tc` (tbf) bounds to the rate; 'none': not at all. Two pipelines, one that overlaps and one that takes turns,
take the same prompt one after the other in every round. Prints medians of the time to first token and their ratio, by
size of a chunk and by the KiB of the kernel's socket buffers (0: as large as the kernel makes them, which here is many
megabytes). Linux and root alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from hyperlane.bench.machine import describe_machine
from hyperlane.core import Row
from hyperlane.stage.overlap import NEVER
from hyperlane.stage.stage import Stage
from hyperlane.stage.terms import hello_to
from hyperlane.testing.fake_engine import FakeCost, FakeEngine
from hyperlane.testing.loopback import tcp_sockets
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs
from hyperlane.wire.frame import Frame, Kind, Role
from hyperlane.wire.ring import TcpRing
from hyperlane.wire.tcp import TcpLink

ALL, SECONDS = 1, 60.0
FACTS = toy_facts(hidden=4096, context=8192)
COST = FakeCost(1.5e-3, 0, 0.15e-3)
INSIDE = "BENCH_OVERLAP_INSIDE"
NO_LIMIT = "none"


@contextmanager
def pipeline(chunk: int, from_bytes: int, buffers: int) -> Iterator[TcpRing]:
    """The head's ends of a ring through two stages."""
    specs = toy_specs(toy_plan(FACTS, stages=2, slots=1), max_step_tokens=chunk)
    engines = [FakeEngine(spec, cost=COST) for spec in specs]
    element = engines[0].element
    terms = [hello_to(spec, Role.UPSTREAM, element).terms() for spec in specs]
    terms.append(hello_to(specs[-1], Role.DOWNSTREAM, element).terms())
    pairs = [tcp_sockets(buffers or None) for _ in terms]
    stages = [Stage(spec, engine, "stage", from_bytes) for spec, engine in zip(specs, engines, strict=True)]
    for number, stage in enumerate(stages):
        stage.attach(Role.UPSTREAM, TcpLink(pairs[number][1], terms[number]))
        stage.attach(Role.DOWNSTREAM, TcpLink(pairs[number + 1][0], terms[number + 1]))
    ring = TcpRing((pairs[0][0], terms[0]), (pairs[-1][1], terms[-1]))
    try:
        yield ring
    finally:
        ring.close()
        for stage in stages:
            stage.close()


def first_token_s(ring: TcpRing, prompt: int, chunk: int, step: int) -> float:
    """Seconds until a prompt's last frame came back."""
    began_s = time.perf_counter()
    for start in range(0, prompt, chunk):
        count = min(chunk, prompt - start)
        wanted = (count - 1,) if start + count == prompt else ()
        tokens = np.full(count, 5, np.int32).tobytes()
        ring.send(Frame(Kind.TOKENS, 1, step + start // chunk, (Row(0, start, count, wanted),), (tokens,)))
    back = 0
    while back < -(-prompt // chunk):
        back += len(ring.poll(SECONDS))
    return time.perf_counter() - began_s


def row(rate: str, buffers: int, chunk: int, prompt: int, rounds: int) -> str:
    """One line of the table."""
    times: list[tuple[float, ...]] = []
    with ExitStack() as parts:
        rings = [parts.enter_context(pipeline(chunk, least, buffers << 10)) for least in (ALL, NEVER)]
        for turn in range(rounds + 1):
            times.append(tuple(first_token_s(ring, prompt, chunk, 1 + turn * prompt) for ring in rings))
    beside, turns = (statistics.median(one) for one in zip(*times[1:], strict=True))  # the first one warms up
    ratio = statistics.median(one[0] / one[1] for one in times[1:])
    held = f"{buffers} KiB" if buffers else "its own"
    return f"| {rate} | {held} | {chunk * 16} KiB | {turns:.3f} s | {beside:.3f} s | {ratio:.2f} |"


def limit(rate: str) -> None:
    """Bound loopback, in packets as a network has them."""
    subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=False, capture_output=True)
    if rate != NO_LIMIT:
        words = f"tc qdisc add dev lo root tbf rate {rate} burst 128kb latency 50ms"
        subprocess.run(words.split(), check=True)


def main() -> None:
    """Command line; runs itself once more in a namespace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=["100mbit", "1gbit", "2.5gbit", NO_LIMIT])
    parser.add_argument("--chunks", nargs="+", type=int, default=[64, 16, 8, 4, 2], help="tokens, 16 KiB each")
    parser.add_argument("--buffers", nargs="+", type=int, default=[128, 0], help="KiB")
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if INSIDE not in os.environ:
        inside = ["unshare", "--net", sys.executable, *sys.argv]
        sys.exit(subprocess.run(inside, check=False, env={**os.environ, INSIDE: "1"}).returncode)
    subprocess.run(["ip", "link", "set", "lo", "mtu", "1500", "up"], check=True)
    print(f"{describe_machine()}; medians of {given.rounds}\n")
    print("| rate | buffers | a chunk | in turns | overlapped | ratio |\n|---|---|---|---|---|---|")
    for rate in given.rates:
        limit(rate)
        for buffers, chunk in itertools.product(given.buffers, given.chunks):
            print(row(rate, buffers, chunk, given.prompt, given.rounds), flush=True)


if __name__ == "__main__":
    main()
