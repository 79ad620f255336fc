"""One remote file brought here whole: resumed where an earlier try ended, checked, and visible only then.

Knows neither the hub nor formats; what the bytes must be is told by the caller.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from hyperlane.errors import TransferError
from hyperlane.models.http_ranges import HttpRanges, NoRanges, open_ranges
from hyperlane.models.ranges import RemoteFile

_CHUNK = 8 << 20
PIECE_BYTES = 8 << 20
CONNECTIONS = 4
"""Pieces of a large file that are on their way at a time: storages give each connection a share of their speed."""

Arrived = Callable[[int], None]
"""Told how many of the file's bytes are here, each time that more are."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to bring. `git`: the SHA-1 that git has of it, for small files of which no SHA-256 is stated."""

    remote: RemoteFile
    git: str = ""

    @property
    def key(self) -> str:
        """Tells versions apart, so that no beginning of one is continued with another."""
        said = self.remote.digest or self.git or f"{self.remote.url}\n{self.remote.size}\n{self.remote.etag}"
        return hashlib.sha256(said.encode()).hexdigest()[:12]


def bring_file(wanted: Wanted, target: Path, arrived: Arrived = lambda _done: None) -> str:
    """Bring a file to `target` and return its SHA-256. Processes that bring the same file wait for the first one.

    What a broken transfer has brought stays beside the target, and the next one goes on from there.

    Raises:
        TransferError: it cannot be had, is not what its server lists, or cannot be stored here.

    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{wanted.key}.partial")
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                digest = _receive_twice(wanted, partial, arrived)
                partial.replace(target)
                return digest
        return hash_file(target)
    except OSError as error:
        raise TransferError(f"{target.name} cannot be stored in {target.parent}: {error}") from error


def check_space(folder: Path, needed: int) -> None:
    """Raise TransferError unless a folder's disk has room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TransferError(
            f"there are {free / 1e6:.0f} MB free on its disk, {needed / 1e6:.0f} MB are needed; "
            "free some, or keep models elsewhere (HYPERLANE_HOME)"
        )


def hash_file(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _receive_twice(wanted: Wanted, partial: Path, arrived: Arrived) -> str:
    """Go on with what an earlier process left; where that was damaged, or cannot be gone on with, begin anew."""
    if partial.exists():
        try:
            digest = _receive(wanted, partial, arrived)
        except NoRanges:
            partial.unlink()
        else:
            if digest is not None:
                return digest
    digest = _receive(wanted, partial, arrived)
    if digest is None:
        raise TransferError(f"{wanted.remote.url} came with another content than its server lists; nothing was kept")
    return digest


def _receive(wanted: Wanted, partial: Path, arrived: Arrived) -> str | None:
    """Append what is missing; the SHA-256 of the whole, or None when it is not what was wanted and is gone."""
    remote, digest = wanted.remote, hashlib.sha256()
    with partial.open("a+b") as file:
        file.seek(0)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        done = min(file.tell(), remote.size)
        check_space(partial.parent, remote.size - done)
        arrived(done)
        with open_ranges(remote) as ranges:
            for chunk in _in_order(ranges, done):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                arrived(done)
        sound = file.tell() == remote.size
    if sound and remote.digest:
        sound = digest.hexdigest() == remote.digest
    elif sound and wanted.git:
        sound = _git_hash(partial) == wanted.git
    if not sound:
        partial.unlink()
        return None
    return digest.hexdigest()


def _in_order(ranges: HttpRanges, begin: int) -> Iterator[bytes]:
    """The file from `begin` on: a long rest over several connections where the server gives parts, else as it comes."""
    if ranges.size - begin <= 2 * PIECE_BYTES:
        yield from ranges.stream(begin, ranges.size - begin)
        return
    try:
        yield ranges.read(begin, PIECE_BYTES)
    except NoRanges:
        if begin:
            raise
        yield from ranges.stream(0, ranges.size)
        return
    yield from _at_once(ranges, iter(range(begin + PIECE_BYTES, ranges.size, PIECE_BYTES)))


def _at_once(ranges: HttpRanges, offsets: Iterator[int]) -> Iterator[bytes]:
    """The pieces at these offsets, in order, some of them on their way ahead of their turn."""
    pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="download")
    try:
        ahead = deque(_submit(pool, ranges, offset) for offset in itertools.islice(offsets, CONNECTIONS))
        while ahead:
            piece = ahead.popleft().result()
            ahead.extend(_submit(pool, ranges, offset) for offset in itertools.islice(offsets, 1))
            yield piece
    except BaseException:
        ranges.close()  # so that nothing goes on in the background
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ThreadPoolExecutor, ranges: HttpRanges, offset: int) -> Future[bytes]:
    return pool.submit(ranges.read, offset, min(PIECE_BYTES, ranges.size - offset))


def _git_hash(path: Path) -> str:
    """What git calls a file's content; read whole, since git keeps small files alone."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
