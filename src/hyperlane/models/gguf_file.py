"""A GGUF file, mapped: its tensors by name, and digests of its content. What its header says is `gguf_header`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from hyperlane.errors import HyperlaneError
from hyperlane.models.digests import WHOLE, DigestCache, FileState
from hyperlane.models.gguf_header import GgufHeader
from hyperlane.models.mapping import map_file
from hyperlane.models.ranges import RemoteFile, TensorPlace, start_digest

_HASH_THREADS = 4
_HASH_CHUNK = 8 << 20


class GgufFile(GgufHeader):
    """A `TensorSource` over a memory-mapped GGUF file of version 2 or 3, little-endian.

    Opening reads the header alone, and of its arrays the lengths alone. Arrays that `read` returned stay valid
    after `close`: they keep the mapping alive. A file must not be truncated while it is open (no reader of a
    mapping can guard against that).
    """

    def __init__(self, path: Path, digests: DigestCache | None = None) -> None:
        """Map the file and check its header.

        Args:
            path: the file.
            digests: where content hashes are kept between runs; without it they are computed anew.

        Raises:
            UnknownModel: there is no such file, or it cannot be opened.
            MalformedModel: it is not a GGUF file, or it is truncated, hostile or inconsistent.
            UnsupportedModel: another version, big-endian, split over several files, or a tensor type of the future.

        """
        self._cache = digests
        data, self._state = map_file(path)
        try:
            super().__init__(data, path, len(data))
        except HyperlaneError:
            data.close()  # the error's traceback would keep the mapping alive, and on Windows the file locked
            raise
        self._bytes = np.frombuffer(data, np.uint8)
        self._digests: dict[str, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the mapping; it ends when no array read from it is left. Idempotent."""
        for held in ("_data", "_bytes"):
            vars(self).pop(held, None)

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor's bytes as stored, a read-only view of the mapping.

        Raises:
            MalformedModel: the file has no such tensor.

        """
        begin = self.offset(name)
        return self._bytes[begin : begin + self._entries[name].info.nbytes]

    @property
    def remote_files(self) -> Sequence[RemoteFile]:
        """As `TensorPlaces`: none, the file is here."""
        return ()

    def place(self, name: str) -> TensorPlace | None:
        """As `TensorPlaces`, with the tensor's digest."""
        entry = self._entries.get(name)
        return None if entry is None else TensorPlace(entry.info, 0, self.offset(name), self.tensor_digest(name))

    # --- identity ----------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the whole file: what model hubs state of their files, so that a copy is known as one.

        Metadata and the tensor table alone do not tell two trainings of one architecture apart, and a sample of the
        weights does not find a hole in a download, so the whole content counts. It is read once (about 1 s a GB); with
        a `DigestCache` never again until the file changes.
        """
        known = self._known()
        if WHOLE not in known:
            digest = hashlib.sha256()
            for begin in range(0, len(self._bytes), _HASH_CHUNK):
                digest.update(self._bytes[begin : begin + _HASH_CHUNK].data)
            known[WHOLE] = digest.hexdigest()
            self._keep(known)
        return known[WHOLE]

    def tensor_digest(self, name: str) -> str:
        """Hex SHA-256 over one tensor's type, shape and bytes: equal tensors convert to equal matrices."""
        return self.digests([name])[name]

    def digests(self, names: Sequence[str]) -> Mapping[str, str]:
        """The digests of some tensors, hashing in parallel those that neither this object nor the cache knows.

        Raises:
            MalformedModel: the file has no tensor of such a name.

        """
        known = self._known()
        missing = [name for name in names if name not in known]
        if missing:
            with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash") as pool:
                known |= dict(zip(missing, pool.map(self._hash, missing), strict=True))
            self._keep(known)
        return {name: known[name] for name in names}

    def _known(self) -> dict[str, str]:
        if self._digests is None:
            self._digests = self._cache.load(self._state) if self._cache else {}
        return self._digests

    def _keep(self, digests: Mapping[str, str]) -> None:
        if self._cache and self._is_unchanged():
            self._cache.save(self._state, digests)

    def _hash(self, name: str) -> str:
        raw, info = self.read(name), self._entries[name].info
        digest = start_digest(info)
        digest.update(raw.data)
        return digest.hexdigest()

    def _is_unchanged(self) -> bool:
        try:
            return FileState.of(self.path, self.path.stat()) == self._state
        except FileNotFoundError:
            return False
