"""A GGUF file, mapped: its metadata, its tensors by name, and digests of its content.

Trusts nothing in the file: every count, length and offset is checked before it is used. Knows no architecture.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hyperlane.errors import HyperlaneError, MalformedModel, UnknownModel, UnsupportedModel
from hyperlane.models.digests import DigestCache, FileState
from hyperlane.models.gguf_values import MAX_KEY_BYTES, Cursor, Metadata, Value
from hyperlane.models.ranges import RemoteFile, TensorPlace, start_digest
from hyperlane.models.weights import TensorInfo

MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 127
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 65_536
_VERSIONS = (2, 3)
_HASH_THREADS = 4


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor and where its bytes begin, counted from the start of the data section."""

    info: TensorInfo
    offset: int


class GgufFile(Metadata):
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
        self.path = path
        self._cache = digests
        data, self._state = _map(path)
        try:
            begin = self._read_header(data)
        except HyperlaneError:
            data.close()  # the error's traceback would keep the mapping alive, and on Windows the file locked
            raise
        self._bytes = np.frombuffer(data, np.uint8)
        self._begin = begin
        self._digests: dict[str, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the mapping; it ends when no array read from it is left. Idempotent."""
        for held in ("_data", "_bytes"):
            vars(self).pop(held, None)

    # --- tensors -----------------------------------------------------------------------------------------------

    def names(self) -> Sequence[str]:
        """Every tensor, in the order of the file's table."""
        return tuple(self._entries)

    def info(self, name: str) -> TensorInfo | None:
        """A tensor's shape, type and size; None when there is none of that name."""
        entry = self._entries.get(name)
        return None if entry is None else entry.info

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor's bytes as stored, a read-only view of the mapping.

        Raises:
            MalformedModel: the file has no such tensor.

        """
        entry = self._entries.get(name)
        if entry is None:
            raise MalformedModel(f"{self.path.name}: there is no tensor '{name}'")
        begin = self._begin + entry.offset
        return self._bytes[begin : begin + entry.info.nbytes]

    @property
    def remote_files(self) -> Sequence[RemoteFile]:
        """As `TensorPlaces`: none, the file is here."""
        return ()

    def place(self, name: str) -> TensorPlace | None:
        """As `TensorPlaces`, with the tensor's digest."""
        entry = self._entries.get(name)
        return (
            None if entry is None else TensorPlace(entry.info, 0, self._begin + entry.offset, self.tensor_digest(name))
        )

    # --- identity ----------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the header and the digest of every tensor: equal exactly when the content is.

        Metadata and the tensor table alone do not tell two trainings of one architecture apart, and a sample of the
        weights does not find a hole in a download, so the whole content counts. It is read once (about 1 s a GB and
        thread), in several threads; with a `DigestCache` never again until the file changes.
        """
        digests = self.digests(self.names())
        root = hashlib.sha256(b"hyperlane gguf 1\n")
        root.update(hashlib.sha256(self._bytes[: self._header_bytes].data).digest())
        for name in self.names():
            root.update(bytes.fromhex(digests[name]))
        return root.hexdigest()

    def tensor_digest(self, name: str) -> str:
        """Hex SHA-256 over one tensor's type, shape and bytes: equal tensors convert to equal matrices."""
        return self.digests([name])[name]

    def digests(self, names: Sequence[str]) -> Mapping[str, str]:
        """The digests of some tensors, hashing in parallel those that neither this object nor the cache knows.

        Raises:
            MalformedModel: the file has no tensor of such a name.

        """
        if self._digests is None:
            self._digests = self._cache.load(self._state) if self._cache else {}
        missing = [name for name in names if name not in self._digests]
        if missing:
            with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash") as pool:
                self._digests |= dict(zip(missing, pool.map(self._hash, missing), strict=True))
            if self._cache and self._is_unchanged():
                self._cache.save(self._state, self._digests)
        return {name: self._digests[name] for name in names}

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

    # --- the header --------------------------------------------------------------------------------------------

    def _read_header(self, data: mmap.mmap) -> int:
        """Read and check all that comes before the tensors' bytes; where these begin."""
        cursor = Cursor(data, self.path.name)
        keys, tensors = _read_counts(cursor)
        super().__init__(data, self.path.name, _read_values(cursor, keys))
        self._refuse_splits()
        table = [_read_entry(cursor) for _ in range(tensors)]
        alignment = self._alignment()
        begin = -(-cursor.at // alignment) * alignment
        _check_places(self.path.name, table, alignment, len(data) - begin)
        self._entries: Mapping[str, _Entry] = {entry.info.name: entry for entry in table}
        self._header_bytes = cursor.at
        return begin

    def _refuse_splits(self) -> None:
        parts = self.integer("split.count") or 1
        if parts > 1:
            raise UnsupportedModel(
                f"{self.path.name} is one of {parts} parts; Hyperlane reads whole files only:"
                " join them first, for instance with llama.cpp's 'llama-gguf-split --merge'"
            )

    def _alignment(self) -> int:
        alignment = self.integer("general.alignment")
        if alignment is None:
            return DEFAULT_ALIGNMENT
        if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise MalformedModel(
                f"{self.path.name}: 'general.alignment' is {alignment}, not a power of two up to {MAX_ALIGNMENT}"
            )
        return alignment


def _map(path: Path) -> tuple[mmap.mmap, FileState]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                raise MalformedModel(f"{path.name}: the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), FileState.of(path, status)
    except OSError as error:
        raise UnknownModel(f"cannot open the model file {path}: {error.strerror or error}") from error


def _read_counts(cursor: Cursor) -> tuple[int, int]:
    """Check magic and version; the numbers of keys and of tensors."""
    begin = cursor.skip(4, "the magic number")
    magic = cursor.data[begin : begin + 4]
    if magic != b"GGUF":
        raise MalformedModel(f"{cursor.label} is not a GGUF file: it begins with {magic!r}, not with b'GGUF'")
    version = cursor.u32("the version")
    if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
        raise UnsupportedModel(f"{cursor.label} is big-endian; Hyperlane reads little-endian GGUF files only")
    if version not in _VERSIONS:
        raise UnsupportedModel(f"{cursor.label} is GGUF version {version}; Hyperlane reads versions 2 and 3")
    tensors, keys = cursor.u64("the tensor count"), cursor.u64("the key count")
    if tensors > MAX_TENSORS:
        cursor.fail(f"the file claims {tensors} tensors, at most {MAX_TENSORS} are allowed")
    if keys > MAX_KEYS:
        cursor.fail(f"the file claims {keys} metadata keys, at most {MAX_KEYS} are allowed")
    return keys, tensors


def _read_values(cursor: Cursor, count: int) -> Mapping[str, Value]:
    values: dict[str, Value] = {}
    for index in range(count):
        key = cursor.text(f"metadata key {index}", MAX_KEY_BYTES)
        if key in values:
            cursor.fail(f"the metadata key '{key}' is there twice")
        values[key] = cursor.value(key)
    return values


def _read_entry(cursor: Cursor) -> _Entry:
    name = cursor.text("a tensor's name", MAX_NAME_BYTES)
    dimensions = cursor.u32(f"the number of dimensions of '{name}'")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        cursor.fail(f"tensor '{name}' has {dimensions} dimensions, 1 to {MAX_DIMENSIONS} are possible")
    # The file lists the fastest-varying dimension first.
    shape = tuple(cursor.u64(f"a dimension of '{name}'") for _ in range(dimensions))[::-1]
    kind = _tensor_type(cursor, name, cursor.u32(f"the type of '{name}'"))
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if 0 in shape:
        cursor.fail(f"tensor '{name}' of shape {shape} is empty")
    if shape[-1] % block:
        cursor.fail(f"tensor '{name}' has rows of {shape[-1]} values, not a multiple of {kind.name}'s block of {block}")
    # Python's integers do not overflow; whatever the product is, it is compared with the file's size.
    info = TensorInfo(name, shape, kind.name, prod(shape) // block * block_bytes)
    return _Entry(info, cursor.u64(f"the offset of '{name}'"))


def _tensor_type(cursor: Cursor, name: str, number: int) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType(number)
    except ValueError:
        raise UnsupportedModel(
            f"{cursor.label}: tensor '{name}' has the type number {number}, which is retired or newer than Hyperlane"
        ) from None


def _check_places(label: str, table: Sequence[_Entry], alignment: int, room: int) -> None:
    """Every name once; every tensor aligned, within the `room` bytes of the data section, and none over another."""
    end, before, seen = 0, "", set[str]()
    for entry in sorted(table, key=lambda entry: entry.offset):
        info, offset = entry.info, entry.offset
        if info.name in seen:
            raise MalformedModel(f"{label}: two tensors are called '{info.name}'")
        if offset % alignment:
            raise MalformedModel(f"{label}: tensor '{info.name}' is at offset {offset}, no multiple of {alignment}")
        if offset + info.nbytes > room:
            raise MalformedModel(
                f"{label}: tensor '{info.name}' is meant to lie at bytes {offset} to {offset + info.nbytes} of the"
                f" data, the file has {max(room, 0)} there; is it truncated?"
            )
        if offset < end:
            raise MalformedModel(f"{label}: tensor '{info.name}' at offset {offset} overlaps '{before}'")
        end, before = offset + info.nbytes, info.name
        seen.add(info.name)
