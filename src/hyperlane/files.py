"""`replace_file`: a file's content changed at once. Knows nothing of what it holds."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in place of what was there: whenever the process ends, it is the old or the new one, whole.

    Raises:
        OSError: the folder is not there or cannot be written, or the disk is full; the old file stays.

    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
