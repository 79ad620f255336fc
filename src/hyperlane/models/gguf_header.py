"""The header of a GGUF file: its metadata and the table of its tensors, read from the first bytes of a file.

Trusts nothing: every count, length and offset is checked before it is used. Knows no architecture, and not where the
rest of the file lies.
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hyperlane.errors import MalformedModel, UnsupportedModel
from hyperlane.models.gguf_values import MAX_KEY_BYTES, Cursor, Metadata, Value
from hyperlane.models.weights import TensorInfo

MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 127
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 65_536
_VERSIONS = (2, 3)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor and where its bytes begin, counted from the start of the data section."""

    info: TensorInfo
    offset: int


class GgufHeader(Metadata, ABC):
    """What a GGUF file of version 2 or 3, little-endian, says before its weights. Of arrays it reads the lengths alone.

    A `TensorSource` once a subclass says where the weights are.
    """

    def __init__(self, data: mmap.mmap | bytes, path: Path, file_bytes: int) -> None:
        """Read and check the header.

        Args:
            data: the file, or as much of its beginning as there is.
            path: the file's, for messages and as the model's name.
            file_bytes: the size of the whole file.

        Raises:
            IncompleteHeader: `data` ends before the header does.
            MalformedModel: it is not a GGUF file, or it is truncated, hostile or inconsistent.
            UnsupportedModel: another version, big-endian, split over several files, or a tensor type of the future.

        """
        self.path = path
        cursor = Cursor(data, path.name, file_bytes)
        keys, tensors = _read_counts(cursor)
        super().__init__(data, path.name, _read_values(cursor, keys))
        self._refuse_splits()
        table = [_read_entry(cursor) for _ in range(tensors)]
        alignment = self._alignment()
        self.header_bytes = cursor.at
        self._begin = -(-cursor.at // alignment) * alignment
        _check_places(path.name, table, alignment, file_bytes - self._begin)
        self._entries: Mapping[str, _Entry] = {entry.info.name: entry for entry in table}

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex SHA-256 that identifies the file's content."""

    @abstractmethod
    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """As `TensorSource.read`."""

    def names(self) -> Sequence[str]:
        """Every tensor, in the order of the file's table."""
        return tuple(self._entries)

    def info(self, name: str) -> TensorInfo | None:
        """A tensor's shape, type and size; None when there is none of that name."""
        entry = self._entries.get(name)
        return None if entry is None else entry.info

    def offset(self, name: str) -> int:
        """Where a tensor's bytes begin in the file.

        Raises:
            MalformedModel: the file has no such tensor.

        """
        entry = self._entries.get(name)
        if entry is None:
            raise MalformedModel(f"{self.path.name}: there is no tensor '{name}'")
        return self._begin + entry.offset

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
