"""The folder of ready units by key: each made once, published whole or not at all, checked before it is used.

Any number of processes may share it. Two that make the same unit at once both end with one that is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hyperlane.errors import LoadFailed
from hyperlane.models.digests import DigestCache, FileState
from hyperlane.store.ready_file import BadReadyFile, NewTensor, ReadyUnit, data_digest, read_unit, write_unit

log = logging.getLogger(__name__)

STALE_S = 24 * 3600.0
"""Unfinished work that is older was left by a process that died."""

UNFINISHED = ".unfinished-"
"""Prefix of folders that are work in progress."""

ABOUT = "about.json"
"""In a folder of the cache: whose it is, for people. When it was last changed is when the content was last used."""

Contents = tuple[Sequence[NewTensor], str]
"""What a unit is made of: its tensors and its note."""


def unit_key(identity: Mapping[str, str]) -> str:
    """The name under which a unit is kept: equal for equal identities alone."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:40]


class ReadyStore:
    """Units below `root`. `digests` keeps which files' content was checked, so that it is read once."""

    def __init__(self, root: Path, digests: DigestCache | None = None) -> None:
        self.root = root
        self._digests = digests or DigestCache(root / ".checked")
        root.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def has(self, key: str) -> bool:
        """Whether a unit is there; whether it is sound is seen when it is got."""
        return (self.root / key).exists()

    def get(self, key: str) -> ReadyUnit | None:
        """A unit that is there and sound; a damaged one is removed."""
        folder = self.root / key
        if not folder.exists():
            return None
        try:
            unit = read_unit(folder)
            self._check_data(unit)
        except (BadReadyFile, OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the ready weights in %s are not sound and are made again: %s", folder, error)
            self._remove(folder)
            return None
        with suppress(OSError):  # made before there was this file, or the disk is read-only
            os.utime(folder / ABOUT)
        return unit

    def get_or_make(self, key: str, make: Callable[[], Contents], about: Mapping[str, str] | None = None) -> ReadyUnit:
        """A unit, made now if it is not there. `about`: what whoever looks after the cache may want to know of it.

        Raises:
            LoadFailed: it cannot be written; the message says where and why.

        """
        found = self.get(key)
        if found is not None:
            return found
        tensors, note = make()
        try:
            return self._publish(key, tensors, note, about or {})
        except OSError as error:
            raise LoadFailed(
                f"the ready form of weights cannot be written to {self.root}: {error.strerror or error}; "
                "free some space, or set HYPERLANE_HOME to another place"
            ) from error

    def _publish(self, key: str, tensors: Sequence[NewTensor], note: str, about: Mapping[str, str]) -> ReadyUnit:
        work = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.root))
        try:
            write_unit(work, tensors, note)
            (work / ABOUT).write_text(json.dumps(dict(about)), encoding="utf-8")
            _sync_folder(work)
            self._move(work, self.root / key)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        _sync_folder(self.root)
        unit = read_unit(self.root / key)
        self._digests.save(FileState.of(unit.data, unit.data.stat()), {"data": unit.digest})
        return unit

    def _move(self, work: Path, folder: Path) -> None:
        try:
            os.rename(work, folder)
        except OSError:
            try:
                read_unit(folder)  # another process was faster, which is as good
            except BadReadyFile:
                self._remove(folder)
                os.rename(work, folder)
            else:
                shutil.rmtree(work, ignore_errors=True)

    def _check_data(self, unit: ReadyUnit) -> None:
        state = FileState.of(unit.data, unit.data.stat())
        known = self._digests.load(state).get("data")
        if known is None:
            known = data_digest(unit)
            self._digests.save(state, {"data": known})
        if known != unit.digest:
            raise BadReadyFile(f"the content of {unit.data} has changed")

    def _remove(self, folder: Path) -> None:
        """Move a folder away, then delete it: what another process has mapped stays readable to it."""
        away = self.root / f"{UNFINISHED}{folder.name}-{os.getpid()}-{time.monotonic_ns()}"
        try:
            os.rename(folder, away)
        except OSError as error:
            log.warning("cannot remove %s: %s", folder, error)
        shutil.rmtree(away, ignore_errors=True)

    def _sweep(self) -> None:
        for folder in self.root.glob(f"{UNFINISHED}*"):
            try:
                old = time.time() - folder.stat().st_mtime > STALE_S
            except FileNotFoundError:
                continue
            if old:
                shutil.rmtree(folder, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make names durable, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
