"""A tensor on its way to the disk: its pieces in any order, a record of them, and its place at the end.

Survives the end of the process at any moment: a piece counts once its line in the record is whole, and the tensor's
digest is taken of what is on disk. Knows no source.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from filelock import FileLock, Timeout

from hyperlane.models.ranges import TensorPlace, start_digest
from hyperlane.store.pieces import PIECE_BYTES, Piece, piece_count, read_record, record_header, record_line

PART, RECORD, LOCK, WHOLE, DIGEST = ".part", ".pieces", ".lock", ".bin", ".sha256"
_READ_BYTES = 1 << 20


class PartialTensor:
    """The files of a tensor that will be at `whole`, held by this process alone until `close`.

    `done`: the pieces that are on disk. `write` from any thread.
    """

    def __init__(self, whole: Path, place: TensorPlace, lock: FileLock) -> None:
        """Use `open_partial`. Takes up what an earlier process has left."""
        self.place = place
        self._whole = whole
        self._lock = lock
        self._guard = threading.Lock()
        record = beside(whole, RECORD)
        part = beside(whole, PART)
        known = record.read_bytes() if record.exists() and part.exists() else b""
        done = read_record(known, place)
        self._part = part.open("r+b" if done is not None else "w+b")
        self._record = record.open("ab" if done is not None else "wb")
        self.done: set[int] = set(done or ())
        if done is None:
            self._append(record_header(place))
        else:
            self._record.truncate(known.rfind(b"\n") + 1)  # without the line that the earlier process did not finish

    def write(self, piece: Piece, data: bytes | bytearray | memoryview) -> bool:
        """Put a piece in its place; whether it was the last one.

        Raises:
            OSError: the disk is full, or worse.

        """
        with self._guard:
            self._part.seek(piece.offset)
            self._part.write(data)
            self._part.flush()
            self._append(record_line(piece.index))
            self.done.add(piece.index)
            return len(self.done) == piece_count(self.place.info.nbytes)

    def digest(self) -> str:
        """The tensor's digest, in hex, of what is on disk."""
        digest = start_digest(self.place.info)
        with self._path(PART).open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def piece_digests(self) -> dict[int, str]:
        """Hex SHA-256 of each piece that is on disk: to find out which of them were wrong, and whose."""
        digests = {}
        with self._path(PART).open("rb") as file:
            for index in sorted(self.done):
                file.seek(index * PIECE_BYTES)
                digests[index] = hashlib.sha256(file.read(PIECE_BYTES)).hexdigest()
        return digests

    def restart(self) -> None:
        """Forget every piece: what is there is not what it should be."""
        with self._guard:
            self._record.seek(0)
            self._record.truncate()
            self._append(record_header(self.place))
            self.done.clear()

    def publish(self, digest: str) -> Path:
        """Give the whole tensor its name, with its digest beside it, and close. Durable where the system can.

        Raises:
            OSError: as the disk does.

        """
        self._part.truncate(self.place.info.nbytes)
        self._part.flush()
        os.fsync(self._part.fileno())
        self._path(DIGEST).write_text(digest, encoding="ascii")
        self._part.close()
        os.replace(self._path(PART), self._whole)
        self._record.close()
        self._path(RECORD).unlink()
        self.close()
        return self._whole

    def close(self) -> None:
        """Let another process have it. Idempotent."""
        self._part.close()
        self._record.close()
        self._lock.release()

    def _append(self, line: bytes) -> None:
        self._record.write(line)
        self._record.flush()

    def _path(self, ending: str) -> Path:
        return beside(self._whole, ending)


def beside(whole: Path, ending: str) -> Path:
    """A file that belongs to the one of a whole tensor."""
    return whole.with_name(whole.name.removesuffix(WHOLE) + ending)


def open_partial(whole: Path, place: TensorPlace) -> PartialTensor | None:
    """A tensor's files, to be written; None while another process writes them.

    Raises:
        OSError: the folder cannot be written.

    """
    whole.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(beside(whole, LOCK), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    try:
        return PartialTensor(whole, place, lock)
    except BaseException:
        lock.release()
        raise
