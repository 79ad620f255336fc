"""What encryption adds to a link: to one decode hop, and to the CPU time of a byte. Two processes over loopback.

    python benchmarks/tls.py [--frames 5000] [--rounds 5] [--megabytes 256]

Plain and encrypted links take turns, round by round, so that what disturbs the machine disturbs both; printed are
medians over the rounds. A hop is half of a round trip of one frame. `MB/s a core` is bytes by the CPU time of the
process alone that sends or receives them: what one core could do that did nothing else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import ssl
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from hyperlane.bench.machine import describe_machine
from hyperlane.core import Address, ElementType, Epoch, HeadId, Precision, Row
from hyperlane.errors import LinkError
from hyperlane.testing.trust import TrustedPair, anybody
from hyperlane.wire.codec import encode_passed_on
from hyperlane.wire.dial import connect
from hyperlane.wire.frame import Frame, Hello, Kind, Role
from hyperlane.wire.limits import Limits
from hyperlane.wire.link import Link
from hyperlane.wire.listener import DataListener
from hyperlane.wire.peer import NodeRole
from hyperlane.wire.timings import PassedTiming

LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
"""Plain links have TCP under them here, as between machines; within one they do without."""

EPOCH = Epoch(HeadId(bytes(16)), 1)
DECODE_BYTES = (2304, 16384, 65536)
"""Hidden states of one row: of a small model in 32 bit; of width 8192 in 16 bit; of eight rows of width 4096."""

BULK_FRAME_BYTES = 4 << 20
"""A prefill chunk: 512 tokens of width 4096 in 16 bit."""


@dataclass(frozen=True, slots=True)
class Bulk:
    """Bytes by a process's own CPU seconds, in MB/s: sending, receiving; and by the clock."""

    send: float
    receive: float
    clock: float


def hello(token_bytes: int) -> Hello:
    """A link whose one-token rows have so many bytes."""
    limits = Limits(max_rows=64, max_step_tokens=512, slots=64, context=8192, vocab=49152, token_bytes=token_bytes)
    return Hello(EPOCH, 1, Role.UPSTREAM, limits, ElementType.F32, Precision.RAW, token_bytes // 4, "benchmark")


def serve(pipe: Connection, folder: str, encrypted: bool) -> None:
    """The other process: passes frames back until told the number of those that it only takes."""
    links: queue.SimpleQueue[Link] = queue.SimpleQueue()
    tls = TrustedPair.worker_tls(Path(folder)) if encrypted else None
    listener = DataListener(
        Address(LOOPBACK, 0), lambda said, _peer: said.limits, lambda _said, link: links.put(link), tls=tls
    )
    pipe.send(listener.address.port)
    target = memoryview(bytearray(BULK_FRAME_BYTES))
    while (order := pipe.recv()) is not None:
        size, frames = order
        answer_all(links.get(), target, size, frames, pipe)
    listener.close()


def answer_all(link: Link, target: memoryview, size: int, frames: int, pipe: Connection) -> None:
    """Pass frames back until the link ends; or, with a number, take so many and tell the CPU time that it took."""
    source = memoryview(bytes(size))

    def place(frame: Frame) -> memoryview:
        return target[: size * sum(row.count for row in frame.rows)]

    began = time.process_time()
    try:
        for _ in range(frames):
            link.recv(place)
        if frames:
            pipe.send(time.process_time() - began)
        while True:
            frame = link.recv(place)
            assert isinstance(frame, Frame)
            link.send(encode_passed_on(frame, Kind.HIDDEN, (source,), PassedTiming(1, 1, 1, 1, 1)))
    except LinkError:
        link.close()


@dataclass(slots=True)
class Peer:
    """The other process, as this one sees it."""

    pipe: Connection
    port: int
    tls: object

    def link(self, size: int, frames: int = 0) -> Link:
        """A new link of a size; `frames`: see `answer_all`."""
        self.pipe.send((size, frames))
        return connect(Address(LOOPBACK, self.port), hello(size), 10, tls=self.tls)  # type: ignore[arg-type]


def hops(peer: Peer, size: int, frames: int) -> float:
    """The median hop of one-row frames, microseconds."""
    link, target, source = peer.link(size), memoryview(bytearray(size)), bytes(size)
    rows, times = (Row(0, 100, 1, (0,)),), []
    for step in range(frames + frames // 10):
        began = time.perf_counter_ns()
        link.send(Frame(Kind.HIDDEN, EPOCH.counter, step, rows, (source,)))
        link.recv(lambda frame: target)
        times.append((time.perf_counter_ns() - began) / 2000)
    link.close()
    return statistics.median(times[frames // 10 :])


def bulk(peer: Peer, megabytes: int) -> Bulk:
    """Large frames in one direction."""
    tokens = 512
    frames = max(1, megabytes * 1_000_000 // BULK_FRAME_BYTES)
    link = peer.link(BULK_FRAME_BYTES // tokens, frames)
    source, rows = bytes(BULK_FRAME_BYTES), (Row(0, 0, tokens, ()),)
    began, cpu = time.perf_counter(), time.process_time()
    for step in range(frames):
        link.send(Frame(Kind.HIDDEN, EPOCH.counter, step, rows, (source,)))
    sending = time.process_time() - cpu
    receiving = peer.pipe.recv()
    clock = time.perf_counter() - began
    link.close()
    sent = frames * BULK_FRAME_BYTES / 1e6
    return Bulk(sent / sending, sent / receiving, sent / clock)


def start(folder: str, trust: TrustedPair, *, encrypted: bool) -> tuple[Peer, multiprocessing.process.BaseProcess]:
    """The other process, listening."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, folder, encrypted), daemon=True)
    process.start()
    tls = trust.head.credentials.client_tls(NodeRole.WORKER, None, anybody) if encrypted else None
    return Peer(ours, ours.recv(), tls), process


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="what TLS adds to a link")
    parser.add_argument("--frames", type=int, default=2000, help="round trips of a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds whose median is taken")
    parser.add_argument("--megabytes", type=int, default=256, help="MB of a round's large frames")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trust = TrustedPair(Path(folder))
        plain, one = start(folder, trust, encrypted=False)
        encrypted, two = start(folder, trust, encrypted=True)
        print(f"{describe_machine()}, {ssl.OPENSSL_VERSION}")
        print(f"medians of {asked.rounds} rounds of {asked.frames} round trips\n")
        print(f"{'one hop, µs':24} {'plain':>8} {'TLS':>8} {'added':>8}")
        for size in DECODE_BYTES:
            pairs = [
                (hops(plain, size, asked.frames), hops(encrypted, size, asked.frames)) for _ in range(asked.rounds)
            ]
            without, with_tls = (statistics.median(times) for times in zip(*pairs, strict=True))
            added = statistics.median(b - a for a, b in pairs)
            print(f"frame of {size:>6} bytes    {without:8.1f} {with_tls:8.1f} {added:8.1f}")
        print(f"\n{'MB/s':24} {'plain':>8} {'TLS':>8} {'ratio':>8}")
        results = [(bulk(plain, asked.megabytes), bulk(encrypted, asked.megabytes)) for _ in range(asked.rounds)]
        for name in ("send", "receive", "clock"):
            label = {"send": "a core, sending", "receive": "a core, receiving", "clock": "by the clock"}[name]
            pairs = [(getattr(a, name), getattr(b, name)) for a, b in results]
            without, with_tls = (statistics.median(values) for values in zip(*pairs, strict=True))
            print(f"{label:24} {without:8.0f} {with_tls:8.0f} {statistics.median(b / a for a, b in pairs):8.2f}")
        for peer, process in ((plain, one), (encrypted, two)):
            peer.pipe.send(None)
            process.join(10)


if __name__ == "__main__":
    main()
