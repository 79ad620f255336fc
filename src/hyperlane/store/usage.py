"""Which models are in use by a process of this machine: a locked file for each use, which ends with the process."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from filelock import FileLock, Timeout

_numbers = itertools.count()
LOADING, RUNNING = "loading", "running"


class Hold:
    """One use of one model, until `release`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = FileLock(path, thread_local=False)
        self._lock.acquire()
        while not path.exists():  # somebody looked at it in the moment before it was locked, and took it for left over
            self._lock.release()
            self._lock.acquire()

    def release(self) -> None:
        """It is in use no more. Idempotent; from any thread."""
        if self._lock.is_locked:
            self._lock.release()
            self._path.unlink(missing_ok=True)


def hold(folder: Path, model: str, how: str) -> Hold:
    """Keep a model's weights from being evicted. `how`: LOADING (all of them) or RUNNING (not their spare copies)."""
    return Hold(folder / f"{model}.{how}.{os.getpid()}-{next(_numbers)}")


def held(folder: Path) -> dict[str, set[str]]:
    """How each model is in use. What a process that died has left is removed."""
    found: dict[str, set[str]] = {}
    for path in folder.glob("*.*.*"):
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            model, how, _ = path.name.split(".")
            found.setdefault(model, set()).add(how)
        else:
            lock.release()
            path.unlink(missing_ok=True)
    return found
