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
