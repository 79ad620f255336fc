"""A GGUF file of which the header alone is here: facts, tokenizer and tensor table, and each tensor's place.

Keeps headers on disk, so that a second look needs no byte. Fetches no weights, but the few that are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hyperlane.errors import MalformedModel
from hyperlane.models.gguf_header import GgufHeader
from hyperlane.models.gguf_values import IncompleteHeader
from hyperlane.models.http_ranges import open_ranges
from hyperlane.models.inventory import ROPE_FACTORS
from hyperlane.models.kept_bytes import keep
from hyperlane.models.ranges import ByteRanges, RemoteFile, TensorPlace

FIRST_BYTES = 1 << 20
GROWTH = 4
MAX_HEADER_BYTES = 256 << 20
"""No vocabulary comes near; a file that claims more is not read to its end."""

MAX_KEPT_BYTES = 1 << 20
"""Of the one tensor that is part of the facts: Llama 3's rotary factors, 256 bytes in its files."""

Opener = Callable[[RemoteFile], ByteRanges]


class RemoteGguf(GgufHeader):
    """The header of a remote file. As `TensorPlaces` it says where workers find their tensors."""

    def __init__(
        self, file: RemoteFile, data: bytes, path: Path, opener: Opener = open_ranges, kept: Path | None = None
    ) -> None:
        """Read the header from `data`, the beginning of the file called `path`. Raises as `GgufHeader`.

        `kept`: beside it the few tensors that are small and were read are kept.
        """
        super().__init__(data, path, file.size)
        self._kept = kept
        self._file = file
        self._opener = opener

    @property
    def fingerprint(self) -> str:
        """The file's SHA-256 as its server states it, so that a copy is known as the same model.

        Where the server states none, a hash of the header and of all that tells this version of the file: then a copy
        is not recognised, but a changed file is.
        """
        if self._file.digest:
            return self._file.digest
        said = f"{self._file.url}\n{self._file.size}\n{self._file.etag}\n"
        return hashlib.sha256(said.encode() + self.header()).hexdigest()

    @property
    def remote_files(self) -> Sequence[RemoteFile]:
        """As `TensorPlaces`."""
        return (self._file,)

    def header(self) -> bytes:
        """The bytes before the tensors."""
        return bytes(self._data[: self.header_bytes])

    def place(self, name: str) -> TensorPlace | None:
        """As `TensorPlaces`: nobody has read the bytes yet, so there is no digest."""
        info = self.info(name)
        return None if info is None else TensorPlace(info, 0, self.offset(name))

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """As `TensorSource.read`, over the network. Raises TransferError too."""
        place = self.place(name)
        if place is None:
            raise MalformedModel(f"{self.path.name}: there is no tensor '{name}'")
        if self._kept is None or name != ROPE_FACTORS or place.info.nbytes > MAX_KEPT_BYTES:
            return self._fetch(place)
        kept = self._kept.with_suffix(f".{name}")
        if not kept.is_file() or kept.stat().st_size != place.info.nbytes:
            keep(kept, self._fetch(place).tobytes())
        return np.frombuffer(kept.read_bytes(), np.uint8)

    def _fetch(self, place: TensorPlace) -> npt.NDArray[np.uint8]:
        ranges = self._opener(self._file)
        try:
            return np.frombuffer(ranges.read(place.offset, place.info.nbytes), np.uint8)
        finally:
            ranges.close()


def open_remote(file: RemoteFile, name: str, headers: Path, opener: Opener = open_ranges) -> RemoteGguf:
    """Read a remote file's header, from the folder `headers` if it was read before.

    Raises:
        TransferError: its bytes cannot be had.
        MalformedModel, UnsupportedModel: as `GgufHeader`.

    """
    kept, path = headers / f"{_key(file)}.gguf-header", Path(name)
    if kept.is_file():
        try:
            return RemoteGguf(file, kept.read_bytes(), path, opener, kept)
        except MalformedModel:
            kept.unlink(missing_ok=True)  # damaged on this disk: read anew
    model = _read(file, path, opener, kept)
    keep(kept, model.header())
    return model


def _read(file: RemoteFile, path: Path, opener: Opener, kept: Path) -> RemoteGguf:
    """More and more of the file's beginning, until the header is whole."""
    ranges, data, wanted = opener(file), b"", FIRST_BYTES
    try:
        while True:
            end = min(wanted, file.size)
            data += ranges.read(len(data), end - len(data))
            try:
                return RemoteGguf(file, data, path, opener, kept)
            except IncompleteHeader:
                if wanted >= MAX_HEADER_BYTES:
                    raise MalformedModel(f"{path}: its header has more than {MAX_HEADER_BYTES >> 20} MiB") from None
                wanted *= GROWTH
    finally:
        ranges.close()


def _key(file: RemoteFile) -> str:
    said = file.digest or f"{file.url}\n{file.size}\n{file.etag}"
    return hashlib.sha256(said.encode()).hexdigest()[:40]
