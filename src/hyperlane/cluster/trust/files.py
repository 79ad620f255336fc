"""Files that nobody else may read: written at once and whole, mode 0600, checked before they are read.

Knows nothing of what they hold. On Windows the folder's inherited access list takes the place of modes.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hyperlane.errors import NotTrusted
from hyperlane.files import OWNER, replace_file

MAX_FILE_BYTES = 1 << 22
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private_folder(folder: Path) -> Path:
    """Make it, with those above it, if need be: nobody else may look into it.

    Raises:
        OSError: it cannot be made.

    """
    folder.mkdir(parents=True, exist_ok=True)
    if os.name == "posix":
        folder.chmod(0o700)
    return folder


def write_private(path: Path, data: bytes) -> None:
    """Replace a file: after a crash at any moment it is the old or the new one, whole, and never readable by others.

    Raises:
        OSError: the folder is not there or cannot be written.

    """
    replace_file(path, data, OWNER)


def read_private(path: Path) -> bytes | None:
    """A file's content; None when it is not there.

    Raises:
        NotTrusted: others may read or write it, it is not a plain file, or it is longer than any of ours.

    """
    check_private(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(data) > MAX_FILE_BYTES:
        raise NotTrusted(f"{path} is longer than any file of ours; move it away")
    return data


def check_private(path: Path) -> None:
    """See that a file, if it is there, is ours alone.

    Raises:
        NotTrusted: others may read or write it, or it is not a plain file.

    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise NotTrusted(f"{path} is not a plain file; move it away")
    if os.name == "posix" and found.st_mode & _OTHERS:
        mode = stat.S_IMODE(found.st_mode)
        raise NotTrusted(
            f"{path} has mode {mode:o}: others on this machine may have read or changed it; if you are sure that "
            f"nobody did, chmod 600 it, otherwise delete {path.parent} and join again"
        )
