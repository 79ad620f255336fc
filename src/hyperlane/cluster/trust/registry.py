"""A JSON list in a private file that several processes change: read, changed and replaced under a lock.

Knows nothing of the entries but their class.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock

from hyperlane.cluster.trust.files import read_private, write_private
from hyperlane.errors import NotTrusted
from hyperlane.plain import plain, revive

LOCK_TIMEOUT_S = 10.0

Entry = TypeVar("Entry")


@dataclass(slots=True)
class Entries(Generic[Entry]):
    """What the file holds; `items` may be changed inside `Registry.change`."""

    items: list[Entry] = field(default_factory=list)


class Registry(Generic[Entry]):
    """The file and its lock. Every method from any thread or process."""

    def __init__(self, path: Path, kind: type[Entry]) -> None:
        self._path = path
        self._kind = kind

    def read(self) -> tuple[Entry, ...]:
        """All entries, as they stand now.

        Raises:
            NotTrusted: the file is damaged, or others may read it.

        """
        data = read_private(self._path)
        return tuple(self._parsed(data)) if data is not None else ()

    @contextmanager
    def change(self) -> Iterator[Entries[Entry]]:
        """The entries to change; kept when the block ends without an error, and if they are others than before.

        Raises:
            NotTrusted: as `read`.
            OSError: the file cannot be written.

        """
        with FileLock(f"{self._path}.lock", timeout=LOCK_TIMEOUT_S):
            before = self.read()
            entries = Entries(list(before))
            yield entries
            if tuple(entries.items) != before:
                write_private(
                    self._path, json.dumps({"version": 1, "entries": plain(entries.items)}, indent=1).encode()
                )

    def stamp(self) -> tuple[int, int]:
        """Another pair whenever the file was changed; costs no read."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_ino)

    def _parsed(self, data: bytes) -> list[Entry]:
        try:
            said: dict[str, Any] = json.loads(data)
            if said["version"] != 1:
                raise NotTrusted(f"{self._path} was written by another version of Hyperlane; update it here")
            return [revive(self._kind, entry) for entry in said["entries"]]
        except (ValueError, KeyError, TypeError) as error:
            raise NotTrusted(f"{self._path} is damaged: {error}") from error
