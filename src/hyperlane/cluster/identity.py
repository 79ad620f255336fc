"""A head's identity on disk: 16 random bytes and a counter of plans that never goes back. Knows no worker."""

from __future__ import annotations

import json
import logging
import secrets
from pathlib import Path

from filelock import FileLock, Timeout

from hyperlane.core import Epoch, HeadId
from hyperlane.files import replace_file

log = logging.getLogger(__name__)

MAX_HEADS = 256


class HeadIdentity:
    """One of this machine's identities, held by this process alone until `close`.

    The first head of a machine that runs is always the same head to the workers; a second one beside it is another.
    """

    def __init__(self, folder: Path) -> None:
        """Take the first identity that no living process holds, making it if need be.

        Raises:
            OSError: the folder cannot be written.

        """
        folder.mkdir(parents=True, exist_ok=True)
        self._lock, number = _take_a_lock(folder)
        self._file = folder / f"head-{number}.json"
        known = _read(self._file)
        self.head, self._counter = known or (HeadId(secrets.token_bytes(16)), 0)

    def next_epoch(self) -> Epoch:
        """A number that no plan of this head had, kept on disk before it is used."""
        self._counter += 1
        text = json.dumps({"head": self.head.hex(), "counter": self._counter})
        replace_file(self._file, text.encode())
        return Epoch(self.head, self._counter)

    def close(self) -> None:
        """Let go of the identity. Idempotent."""
        self._lock.release()


def _read(file: Path) -> tuple[HeadId, int] | None:
    try:
        said = json.loads(file.read_bytes())
        head, counter = bytes.fromhex(said["head"]), int(said["counter"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        # The counter must never go back, and it is lost: so this must be another head from now on.
        log.warning("%s is damaged (%s): this head gets a new identity", file, error)
        return None
    return (HeadId(head), counter) if len(head) == 16 and 0 <= counter < 1 << 63 else None


def _take_a_lock(folder: Path) -> tuple[FileLock, int]:
    for number in range(MAX_HEADS):
        lock = FileLock(folder / f"head-{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        return lock, number
    raise OSError(f"{MAX_HEADS} heads run on this machine already")
