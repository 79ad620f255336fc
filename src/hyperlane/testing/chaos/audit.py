"""What processes hold: threads, file handles, sockets, memory, children. To be compared when nothing runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Level:
    """Of one process. `memory`: bytes that no file stands behind: a mapped model counts for nobody."""

    pid: int
    threads: int
    files: int
    sockets: int
    children: int
    memory: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a process may hold more than before: pools of threads fill up, memory in use is not all given back at once.

    A leak of one handle a fault, or of a request's text or a stage's weights, is far beyond.
    """

    threads: int
    files: int
    sockets: int
    memory: int
    children: int = 0


HEAD_MAY = Allowance(threads=10, files=6, sockets=6, memory=48 << 20)
WORKER_MAY = Allowance(threads=4, files=2, sockets=2, memory=8 << 20)
ENGINE_MAY = Allowance(threads=4, files=2, sockets=2, memory=32 << 20)
"""Of a worker with the real engine: the system's allocator keeps some of what sessions had, most from the first ones.
One arena of keys and values that stays at each load would be far beyond."""


def grown(who: str, before: Level, after: Level, may: Allowance) -> list[str]:
    """In words, what a process holds more than it may; empty if all is well."""
    found = []
    for name in ("threads", "files", "sockets", "children"):
        more = getattr(after, name) - getattr(before, name)
        if more > getattr(may, name):
            found.append(f"{who} has {more} more {name}: {before} -> {after}")
    if after.memory - before.memory > may.memory:
        found.append(f"{who} has {(after.memory - before.memory) >> 20} MiB more: {before} -> {after}")
    return found


def most(found: Iterable[Level]) -> Level:
    """The most that any of them holds of each; of at least one."""
    known = list(found)
    return Level(0, *(max(getattr(one, name) for one in known) for name in Level.__slots__[1:]))


def level(process: psutil.Process) -> Level:
    """What a process holds now. Linux."""
    links = [_link(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir()]
    sockets = sum(link.startswith("socket:") for link in links)
    children = len(process.children(recursive=True))
    memory = process.memory_info().rss - process.memory_info().shared
    return Level(process.pid, process.num_threads(), len(links) - sockets, sockets, children, memory)


def levels(processes: Iterable[psutil.Process]) -> dict[int, Level]:
    """Of each that still runs, by its number."""
    found = {}
    for process in processes:
        try:
            found[process.pid] = level(process)
        except (psutil.NoSuchProcess, FileNotFoundError):
            continue
    return found


def slope_per_hour(points: Iterable[tuple[float, float]]) -> float:
    """Of a straight line through points (seconds, value), by least squares: value per hour; 0 for fewer than two."""
    known = list(points)
    mean_x = sum(x for x, _ in known) / max(1, len(known))
    mean_y = sum(y for _, y in known) / max(1, len(known))
    spread = sum((x - mean_x) ** 2 for x, _ in known)
    return 3600 * sum((x - mean_x) * (y - mean_y) for x, y in known) / spread if spread else 0.0


def _link(entry: Path) -> str:
    try:
        return os.readlink(entry)
    except OSError:
        return ""
