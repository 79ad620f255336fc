"""Content hashes of model files, kept on disk so that gigabytes are hashed once. Knows no file format."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

log = logging.getLogger(__name__)

WHOLE = ""
"""The name under which the digest of a whole file is kept, beside those of its parts."""

_SETTLED_NS = 2_000_000_000
"""A file changed less than this ago may change again within one tick of a coarse clock (FAT: 2 s): not cached."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells a changed file from an unchanged one without reading it. Times in nanoseconds of the epoch."""

    path: str
    size: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path, status: os.stat_result) -> FileState:
        """The state of a file from what `stat` says of it."""
        return cls(os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino)


class DigestCache:
    """One small JSON file for each model file: its state when it was hashed, and the digest of each part by name.

    A cache that cannot be read or written is only slower, so both are logged and never raised.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, state: FileState) -> dict[str, str]:
        """The digests known of a file in exactly this state; empty when there are none."""
        try:
            known = json.loads(self._place(state).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("cannot read the cached digests of %s, hashing it again: %s", state.path, error)
            return {}
        if not isinstance(known, dict) or known.get("state") != asdict(state):
            return {}
        digests = known.get("digests")
        return digests if isinstance(digests, dict) and all(map(_is_digest, digests.values())) else {}

    def save(self, state: FileState, digests: Mapping[str, str], *, settled: bool = False) -> None:
        """Keep the digests of a file in this state, in place of what was known of its path.

        `settled`: nobody changes the file any more, however lately it was changed.
        """
        if not settled and abs(time.time_ns() - state.modified_ns) < _SETTLED_NS:
            return
        place = self._place(state)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=self._folder, prefix=place.stem, delete=False
            ) as file:
                json.dump({"state": asdict(state), "digests": dict(digests)}, file)
            os.replace(file.name, place)
        except OSError as error:
            log.warning("cannot keep the digests of %s in %s: %s", state.path, self._folder, error)

    def _place(self, state: FileState) -> Path:
        return self._folder / f"{sha256(state.path.encode(errors='surrogateescape')).hexdigest()[:32]}.json"


def _is_digest(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and all(c in "0123456789abcdef" for c in text)
