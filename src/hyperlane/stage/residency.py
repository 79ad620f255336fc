"""Gives back what only a load has used: pages of mapped files that it read, and memory that it freed.

Linux alone; elsewhere it does nothing. Pages of files stay in the system's cache and come back when they are touched.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

_DONTNEED = 4


def release_after_load(root: Path) -> None:
    """Unmap the resident pages of files below `root`, but of no mapping that holds changed pages; trim the heap."""
    if sys.platform != "linux":
        return
    release_freed()
    libc = ctypes.CDLL(None, use_errno=True)
    for begin, end in _clean_mappings(Path("/proc/self/smaps").read_text(encoding="utf-8"), str(root.resolve())):
        if libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED):
            log.debug("madvise: errno %d", ctypes.get_errno())


def release_freed() -> None:
    """Trim the heap: each thread that computed has a part of it, which keeps what a stage freed till the next load."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's
        libc.malloc_trim(ctypes.c_size_t(0))


def _clean_mappings(smaps: str, root: str) -> Iterator[tuple[int, int]]:
    """Address ranges of mappings of files below `root` of which this process has changed nothing."""
    span: tuple[int, int] | None = None
    for line in smaps.splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            begin, _, end = first.partition("-")
            fields = rest.split(maxsplit=4)
            is_ours = len(fields) == 5 and fields[4].startswith(f"{root}/")
            span = (int(begin, 16), int(end, 16)) if is_ours else None
        elif first == "Private_Dirty:" and span is not None and rest.split() == ["0", "kB"]:
            yield span
