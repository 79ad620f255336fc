"""A machine's cache of weights as a whole: what is there, what may stay, what goes. Any number of processes share it.

What is in use never goes, so a model that is loaded may exceed the limit for as long as it is.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hyperlane.errors import LoadFailed
from hyperlane.files import replace_file
from hyperlane.store import usage
from hyperlane.store.eviction import Entry, Kind, to_evict
from hyperlane.store.partial import DIGEST, LOCK, PART, RECORD, WHOLE, beside
from hyperlane.store.ready_store import ABOUT, UNFINISHED

log = logging.getLogger(__name__)

TENSORS, READY, IN_USE, LIMIT = "tensors", "ready", "in-use", "limit"
KEEP_FREE = 10
"""Without a limit, one part in so many of the disk stays free."""


class Cache:
    """Everything below `folder`, Hyperlane's cache folder, that holds weights of layers."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        """`limit`: bytes; None: what was set by `set_limit`, or all but a part of the disk."""
        self.folder = folder
        self._limit = limit

    # --- what there is ---------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Everything, in no order."""
        use = usage.held(self.folder / IN_USE)
        ready = list(self._ready(use))
        made = {entry.model for entry in ready} - {""}
        return [*ready, *self._tensors(use, made)]

    @property
    def limit(self) -> int | None:
        """The bytes that may stay; None: no limit was set."""
        if self._limit is not None:
            return self._limit
        try:
            return int((self.folder / LIMIT).read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def set_limit(self, limit: int | None) -> None:
        """Keep a limit for this machine, or forget it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if limit is None:
            (self.folder / LIMIT).unlink(missing_ok=True)
        else:
            replace_file(self.folder / LIMIT, b"%d" % limit)

    def allowed(self, used: int) -> int:
        """Bytes that the cache may have now, when it has `used`."""
        if self.limit is not None:
            return self.limit
        self.folder.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(self.folder)
        return max(0, used + disk.free - disk.total // KEEP_FREE)

    def hold(self, model: str, how: str) -> usage.Hold:
        """Keep a model's weights until the hold is released; see `usage`."""
        return usage.hold(self.folder / IN_USE, model, how)

    # --- what goes -------------------------------------------------------------------------------------------

    def make_room(self, nbytes: int) -> None:
        """See that so many more bytes can be kept, and stay within the limit as far as what is in use lets it.

        Raises:
            LoadFailed: the disk has no room for them.

        """
        if nbytes <= 0:
            return
        self.trim(nbytes)
        free = shutil.disk_usage(self.folder).free
        if free < nbytes:
            raise LoadFailed(
                f"the weights to be fetched take {nbytes / 1e9:.2f} GB, but the disk of {self.folder} has "
                f"{free / 1e9:.2f} GB free: free some space, or set HYPERLANE_HOME to another place"
            )

    def trim(self, more: int = 0) -> list[Entry]:
        """Remove what is over the limit, as if `more` bytes had come already; what was removed."""
        entries = self.entries()
        used = sum(entry.nbytes for entry in entries)
        return self.remove(to_evict(entries, used + more - self.allowed(used)))

    def prune(self) -> list[Entry]:
        """Remove what is over the limit, unfinished tensors of models that nobody loads, and spare copies."""
        waste = [entry for entry in self.entries() if entry.kind is Kind.PARTIAL or entry.spare]
        return [*self.remove(entry for entry in waste if not entry.in_use), *self.trim()]

    def clear(self) -> list[Entry]:
        """Remove everything that is not in use."""
        return self.remove(entry for entry in self.entries() if not entry.in_use)

    def remove(self, entries: Iterable[Entry]) -> list[Entry]:
        """Remove entries; those that could be."""
        gone = [entry for entry in entries if self._remove(entry)]
        for entry in gone:
            log.info("evicted %s (%d bytes)", entry.where, entry.nbytes)
        return gone

    # --- inside ----------------------------------------------------------------------------------------------

    def _ready(self, use: dict[str, set[str]]) -> Iterator[Entry]:
        for folder in (self.folder / READY).glob("[!.]*"):
            about = _about(folder)
            model = about.get("model", "")
            with suppress(OSError):
                nbytes = sum(path.stat().st_size for path in folder.iterdir())
                used_s = max(folder.stat().st_mtime, _changed_s(folder / ABOUT))
                where = f"{READY}/{folder.name}"
                yield Entry(Kind.READY, where, model, about.get("name", ""), nbytes, used_s, in_use=model in use)

    def _tensors(self, use: dict[str, set[str]], made: set[str]) -> Iterator[Entry]:
        for folder in (self.folder / TENSORS).glob("[!.]*"):
            model, name, used_s = folder.name, _about(folder).get("name", ""), _changed_s(folder / ABOUT)
            spare = model in made
            in_use = usage.LOADING in use.get(model, ()) or (model in use and not spare)
            for path in folder.glob(f"*{WHOLE}"):
                with suppress(FileNotFoundError):
                    size = path.stat().st_size
                    where = f"{TENSORS}/{model}/{path.name}"
                    yield Entry(Kind.TENSORS, where, model, name, size, used_s, in_use, spare)
            for path in folder.glob(f"*{PART}"):
                with suppress(FileNotFoundError):
                    where = f"{TENSORS}/{model}/{path.name}"
                    yield Entry(
                        Kind.PARTIAL, where, model, name, _on_disk(path), used_s, usage.LOADING in use.get(model, ())
                    )

    def _remove(self, entry: Entry) -> bool:
        path = self.folder / entry.where
        try:
            if entry.kind is Kind.READY:
                away = path.with_name(f"{UNFINISHED}{path.name}-{os.getpid()}-{time.monotonic_ns()}")
                os.rename(path, away)  # what another process has mapped stays readable to it
                shutil.rmtree(away, ignore_errors=True)
            elif entry.kind is Kind.TENSORS:
                path.unlink()
                beside(path, DIGEST).unlink(missing_ok=True)
            else:
                whole = path.with_name(path.name.removesuffix(PART) + WHOLE)
                with FileLock(beside(whole, LOCK), timeout=0):
                    beside(whole, RECORD).unlink(missing_ok=True)
                    path.unlink()
        except (OSError, Timeout) as error:
            log.info("%s stays: %s", path, error)
            return False
        return True


def _about(folder: Path) -> dict[str, str]:
    try:
        said = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in said.items()} if isinstance(said, dict) else {}


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _on_disk(path: Path) -> int:
    """Bytes that a file with holes takes."""
    status = path.stat()
    return getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
