"""Time of one loopback hop: encode, send, receive, decode and pass on, without any engine, between two processes.

    python benchmarks/hop.py [--frames 5000]

A hop is half of a round trip between two processes that relay a frame as stages do. Prints microseconds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import queue
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from hyperlane.core import Address, ElementType, Epoch, HeadId, Precision, Row
from hyperlane.errors import LinkError
from hyperlane.wire.candidates import candidates_bytes
from hyperlane.wire.codec import encode_passed_on
from hyperlane.wire.dial import connect
from hyperlane.wire.frame import Frame, Hello, Kind, Role
from hyperlane.wire.limits import Limits
from hyperlane.wire.link import Link
from hyperlane.wire.listener import DataListener
from hyperlane.wire.ring import TcpRing
from hyperlane.wire.timings import PassedTiming

VOCAB = 49152
EPOCH = Epoch(HeadId(bytes(16)), 1)


def hello(role: Role, stage: int, token_bytes: int) -> Hello:
    """What the benchmark's links agree on: one-token rows of `token_bytes`."""
    limits = Limits(max_rows=64, max_step_tokens=512, slots=64, context=8192, vocab=VOCAB, token_bytes=token_bytes)
    return Hello(EPOCH, stage, role, limits, ElementType.F32, Precision.RAW, token_bytes // 4, "benchmark")


def relay(incoming: Link, outgoing: Link, kind: Kind, size: int) -> None:
    """Receive into one fixed buffer, send from another, until the peer ends."""
    target, source = memoryview(bytearray(1 << 20)), memoryview(bytearray(size))
    widths = {Kind.TOKENS: 4, Kind.HIDDEN: size}
    try:
        while True:
            frame = incoming.recv(lambda frame: target[: widths[frame.kind] * sum(row.count for row in frame.rows)])
            assert isinstance(frame, Frame)
            outgoing.send(encode_passed_on(frame, kind, (source,), PassedTiming(0, 1, 1, 1, 1)))
    except LinkError:
        return


def serve(ports: Connection, ring: bool, size: int) -> None:
    """The other process: one data port, and a relay as soon as its links are there."""
    links: queue.SimpleQueue[tuple[Role, Link]] = queue.SimpleQueue()
    listener = DataListener(
        Address("127.0.0.1", 0), lambda said, _peer: said.limits, lambda said, link: links.put((said.role, link))
    )
    ports.send(listener.address.port)
    there = dict(links.get() for _ in range(2 if ring else 1))
    incoming = there[Role.UPSTREAM]
    outgoing = there.get(Role.DOWNSTREAM, incoming)
    relay(incoming, outgoing, Kind.CANDIDATES if ring else Kind.HIDDEN, size)
    listener.close()


def rows_of(count: int) -> tuple[Row, ...]:
    """A decode step of so many sequences."""
    return tuple(Row(slot, 100 + slot, 1, (0,)) for slot in range(count))


def timed(frames: int, trip: Callable[[int], None]) -> list[float]:
    """Microseconds of each hop (half of a round trip), after a warm-up."""
    for step in range(frames // 10):
        trip(step)
    times = []
    for step in range(frames):
        began = time.perf_counter_ns()
        trip(step)
        times.append((time.perf_counter_ns() - began) / 2000)
    return times


def link_hops(port: int, size: int, frames: int) -> list[float]:
    """Stage to stage: one row of hidden states there and back on one link."""
    link = connect(Address("127.0.0.1", port), hello(Role.UPSTREAM, 1, size), 10)
    target, source, rows = memoryview(bytearray(size)), bytes(size), rows_of(1)

    def trip(step: int) -> None:
        link.send(Frame(Kind.HIDDEN, EPOCH.counter, step, rows, (source,)))
        link.recv(lambda frame: target)

    times = timed(frames, trip)
    link.close()
    return times


def ring_hops(port: int, count: int, frames: int) -> list[float]:
    """The head's ring round one stage: token ids there, candidates of `count` rows back."""
    address = Address("127.0.0.1", port)
    ring = TcpRing.connect(address, hello(Role.UPSTREAM, 0, 4), address, hello(Role.DOWNSTREAM, 0, 4), 10)
    rows, ids = rows_of(count), bytes(4 * count)

    def trip(step: int) -> None:
        ring.send(Frame(Kind.TOKENS, EPOCH.counter, step, rows, (ids,)))
        while not ring.poll(10):
            pass

    times = timed(frames, trip)
    ring.close()
    return times


def measure(name: str, frames: int, size: int, count: int) -> None:
    """Start the other process, measure, print one line. `count` 0: a link, else a ring with so many rows."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, bool(count), size), daemon=True)
    process.start()
    port = ours.recv()
    times = ring_hops(port, count, frames) if count else link_hops(port, size, frames)
    process.join(10)
    p99 = statistics.quantiles(times, n=100)[98]
    print(f"{name:34} {statistics.median(times):8.1f} {p99:8.1f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="time of one loopback hop")
    parser.add_argument("--frames", type=int, default=5000, help="round trips for each line")
    frames = parser.parse_args().frames
    print(f"{platform.machine()}, Python {platform.python_version()}, {frames} round trips each")
    print(f"{'one hop, microseconds':34} {'median':>8} {'p99':>8}")
    for label, size in (("2.3 KB", 2304), ("16 KB", 16384), ("256 KB", 1 << 18)):
        measure(f"link, HIDDEN of {label}", frames, size, 0)
    for count in (1, 8):
        measure(
            f"ring, {count} row{'s' * (count > 1)} of candidates",
            frames,
            candidates_bytes(rows_of(count), VOCAB),
            count,
        )


if __name__ == "__main__":
    main()
