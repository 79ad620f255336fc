"""A GGUF file, mapped: its tensors by name, and digests of its content. What its header says is `gguf_header`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from hyperlane.errors import HyperlaneError
from hyperlane.models.digests import DigestCache
from hyperlane.models.gguf_header import GgufHeader
from hyperlane.models.mapping import MappedFile
from hyperlane.models.ranges import RemoteFile, TensorPlace


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
        self._file = MappedFile(path, digests)
        try:
            super().__init__(self._file.raw, path, len(self._file.data))
        except HyperlaneError:
            self._file.discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the mapping; it ends when no array read from it is left. Idempotent."""
        vars(self).pop("_data", None)
        self._file.close()

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor's bytes as stored, a read-only view of the mapping.

        Raises:
            MalformedModel: the file has no such tensor.

        """
        begin = self.offset(name)
        return self._file.data[begin : begin + self._entries[name].info.nbytes]

    @property
    def remote_files(self) -> Sequence[RemoteFile]:
        """As `TensorPlaces`: none, the file is here."""
        return ()

    def place(self, name: str) -> TensorPlace | None:
        """As `TensorPlaces`, with the tensor's digest."""
        if self.info(name) is None:
            return None
        return replace(self._place(name), digest=self.tensor_digest(name))

    # --- identity ----------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the whole file: what model hubs state of their files, so that a copy is known as one.

        Metadata and the tensor table alone do not tell two trainings of one architecture apart, and a sample of the
        weights does not find a hole in a download, so the whole content counts. It is read once (about 1 s a GB); with
        a `DigestCache` never again until the file changes.
        """
        return self._file.digest

    def tensor_digest(self, name: str) -> str:
        """Hex SHA-256 over one tensor's type, shape and bytes: equal tensors convert to equal matrices."""
        return self.digests([name])[name]

    def digests(self, names: Sequence[str]) -> Mapping[str, str]:
        """The digests of some tensors, hashing in parallel those that neither this object nor the cache knows.

        Raises:
            MalformedModel: the file has no tensor of such a name.

        """
        return self._file.digests(map(self._place, names))

    def _place(self, name: str) -> TensorPlace:
        begin = self.offset(name)
        return TensorPlace(self._entries[name].info, 0, begin)
