"""A file that is mapped for reading, and digests of it and of its tensors. Knows no format."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hyperlane.errors import MalformedModel, UnknownModel
from hyperlane.models.digests import WHOLE, DigestCache, FileState
from hyperlane.models.ranges import TensorPlace, start_digest

_HASH_THREADS = 4
_HASH_CHUNK = 8 << 20


class MappedFile:
    """A file's bytes, and digests that are computed once and kept in a cache, if there is one."""

    def __init__(self, path: Path, cache: DigestCache | None = None) -> None:
        """Map the file; none of its bytes are read yet.

        Raises:
            UnknownModel: there is no such file, or it cannot be opened.
            MalformedModel: it is empty.

        """
        self.path = path
        self.raw, self._state = _map(path)
        self.data: npt.NDArray[np.uint8] = np.frombuffer(self.raw, np.uint8)
        self._cache = cache
        self._digests: dict[str, str] | None = None

    def close(self) -> None:
        """Let go of the mapping; it ends when no array of it is left. Idempotent."""
        self.data = np.empty(0, np.uint8)
        vars(self).pop("raw", None)

    def discard(self) -> None:
        """End the mapping of a file that cannot be used, before any array of it was handed out.

        An error's traceback would keep it alive otherwise, and on Windows the file locked.
        """
        raw = self.raw
        self.close()
        raw.close()

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the whole file."""
        known = self._known()
        if WHOLE not in known:
            digest = hashlib.sha256()
            for begin in range(0, len(self.data), _HASH_CHUNK):
                digest.update(self.data[begin : begin + _HASH_CHUNK].data)
            known[WHOLE] = digest.hexdigest()
            self._keep(known)
        return known[WHOLE]

    def digests(self, places: Iterable[TensorPlace]) -> Mapping[str, str]:
        """By name the digests of some of the file's tensors, in hex, as `start_digest` begins them."""
        known, wanted = self._known(), list(places)
        missing = [place for place in wanted if place.info.name not in known]
        if missing:
            with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash") as pool:
                names = (place.info.name for place in missing)
                known |= dict(zip(names, pool.map(self._hash, missing), strict=True))
            self._keep(known)
        return {place.info.name: known[place.info.name] for place in wanted}

    def _hash(self, place: TensorPlace) -> str:
        digest = start_digest(place.info)
        digest.update(self.data[place.offset : place.offset + place.info.nbytes].data)
        return digest.hexdigest()

    def _known(self) -> dict[str, str]:
        if self._digests is None:
            self._digests = self._cache.load(self._state) if self._cache else {}
        return self._digests

    def _keep(self, digests: Mapping[str, str]) -> None:
        if self._cache and self._is_unchanged():
            self._cache.save(self._state, digests)

    def _is_unchanged(self) -> bool:
        try:
            return FileState.of(self.path, self.path.stat()) == self._state
        except FileNotFoundError:
            return False


def _map(path: Path) -> tuple[mmap.mmap, FileState]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                raise MalformedModel(f"{path.name}: the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), FileState.of(path, status)
    except OSError as error:
        raise UnknownModel(f"cannot open the model file {path}: {error.strerror or error}") from error
