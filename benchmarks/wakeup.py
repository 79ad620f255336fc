"""What waiting for a frame costs on this machine: a receiver that sleeps and one that looks, after work and without.

    python benchmarks/wakeup.py [--frames 300]

Two processes on loopback; nothing of Hyperlane takes part. Prints microseconds from before the sender's call until the
receiver has the bytes. `wire/anticipation.py` is there because of these figures.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import socket
import statistics
import struct
import time
from multiprocessing.connection import Connection

import numpy as np

STAMP = struct.Struct("<q")
WORK_S = 10e-3
WORK_BYTES = 64 << 20
"""More than the caches hold, as a model's weights are."""


def receive(port: int, looks: bool, results: Connection) -> None:
    """The other process: notes how old each stamp is when it has it."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setblocking(not looks)
        ages = []
        while True:
            try:
                data = sock.recv(STAMP.size)
            except BlockingIOError:
                continue
            now_ns = time.perf_counter_ns()
            if not data:
                break
            ages.append((now_ns - STAMP.unpack(data)[0]) / 1000)
    results.send(ages)


def measure(frames: int, *, works: bool, looks: bool) -> list[float]:
    """Ages in microseconds of so many stamps."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    weights = np.ones(WORK_BYTES // 4, np.float32)
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = context.Process(target=receive, args=(server.getsockname()[1], looks, theirs), daemon=True)
        process.start()
        sock, _ = server.accept()
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        at = 0
        for _ in range(frames):
            until_s = time.perf_counter() + (WORK_S if works else 0.2e-3)
            while time.perf_counter() < until_s:
                if works:
                    weights[at : at + (1 << 18)].sum()
                    at = (at + (1 << 18)) % len(weights)
            sock.send(STAMP.pack(time.perf_counter_ns()))
    ages: list[float] = ours.recv()
    process.join(10)
    return ages


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="what waiting for a frame costs")
    parser.add_argument("--frames", type=int, default=300, help="stamps for each line")
    frames = parser.parse_args().frames
    print(f"{platform.machine()}, {platform.system()} {platform.release()}, {frames} frames each")
    print(f"{'between two frames':26} {'receiver':>9} {'median':>8} {'p90':>8}   microseconds")
    for works in (False, True):
        for looks in (False, True):
            ages = measure(frames, works=works, looks=looks)
            label = f"{WORK_S * 1000:.0f} ms of memory traffic" if works else "0.2 ms"
            p90 = statistics.quantiles(ages, n=10)[8]
            print(f"{label:26} {'looks' if looks else 'sleeps':>9} {statistics.median(ages):8.0f} {p90:8.0f}")


if __name__ == "__main__":
    main()
