"""`replace_file`: a file's content changed at once. Knows nothing of what it holds."""

from __future__ import annotations

import os
import threading
from pathlib import Path

ANYBODY, OWNER = 0o666, 0o600
"""Modes of a new file, before the process's mask: as other programs make theirs, and for nobody else."""


def replace_file(path: Path, data: bytes, mode: int = ANYBODY) -> None:
    """Write a file in place of what was there: whenever the process ends, it is the old or the new one, whole.

    `mode`: the new file's, from its first byte on.

    Raises:
        OSError: the folder is not there or cannot be written, or the disk is full; the old file stays.

    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    scratch.unlink(missing_ok=True)  # of a process of that number that died
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
