"""The header of a safetensors file: bytes in, a table of checked tensors out. Reads no file and knows no model.

Format: https://huggingface.co/docs/safetensors: a 64-bit length, as many bytes of JSON, then the tensors' bytes
without gaps. Trusts nothing: whatever a table holds lies within the file, and no two of its tensors overlap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NoReturn, TypeGuard

from hyperlane.errors import MalformedModel, UnsupportedModel

LENGTH_BYTES = 8
"""What a file begins with: the length of the JSON behind it, little-endian."""

MAX_JSON_BYTES = 100_000_000
"""The format's own limit."""

MAX_DIMENSIONS = 8
MAX_TENSORS = 65_536
MAX_NAME = 512

_METADATA = "__metadata__"
_LARGEST = (1 << 63) - 1
_ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "C64": 8,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of one file: its own name, type (`BF16`) and row-major shape; its bytes lie at `offset` of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def header_bytes(beginning: bytes, file_bytes: int, label: str) -> int:
    """How many bytes of a file are its header, from its first `LENGTH_BYTES` (or more) and its size.

    Raises:
        MalformedModel: it is no safetensors file, truncated, or its header is longer than the format allows.

    """
    if len(beginning) < LENGTH_BYTES:
        raise MalformedModel(f"{label}: {file_bytes} bytes are no safetensors file; is it truncated?")
    length = int.from_bytes(beginning[:LENGTH_BYTES], "little")
    if length > MAX_JSON_BYTES:
        raise MalformedModel(
            f"{label}: claims a header of {length} bytes, {MAX_JSON_BYTES} are allowed; is it a safetensors file?"
        )
    if LENGTH_BYTES + length > file_bytes:
        raise MalformedModel(f"{label}: claims a header of {length} bytes, the file has {file_bytes}; is it truncated?")
    return LENGTH_BYTES + length


def read_header(header: bytes, file_bytes: int, label: str) -> Mapping[str, StoredTensor]:
    """The tensors of a file by name, in the order of their bytes.

    Args:
        header: the file's first `header_bytes`.
        file_bytes: the size of the whole file.
        label: what errors call the file.

    Raises:
        MalformedModel: the header is no such JSON, or its tensors overlap, leave gaps or reach beyond the file.
        UnsupportedModel: a tensor is of a type that this version does not know.

    """
    begin = header_bytes(header, file_bytes, label)
    if len(header) != begin:
        raise MalformedModel(f"{label}: {len(header)} bytes of header came, not {begin}; is it truncated?")
    reader = _Reader(label, begin)
    entries = reader.entries(header[LENGTH_BYTES:])
    tensors = sorted((reader.tensor(name, entry) for name, entry in entries.items()), key=lambda one: one.offset)
    reader.check_places(tensors, file_bytes)
    return {tensor.name: tensor for tensor in tensors}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Checks the parts of one header; `begin` is where the tensors' bytes begin."""

    label: str
    begin: int

    def fail(self, what: str) -> NoReturn:
        """Raise MalformedModel that names the file."""
        raise MalformedModel(f"{self.label}: {what}")

    def entries(self, text: bytes) -> dict[str, object]:
        """By name what the JSON says of each tensor."""
        try:
            found = json.loads(text.decode("utf-8"), object_pairs_hook=self._unique)
        except (ValueError, RecursionError) as error:
            self.fail(f"the header is not JSON ({error}); is it a safetensors file?")
        if not isinstance(found, dict):
            self.fail("the header is no JSON object")
        found.pop(_METADATA, None)
        if len(found) > MAX_TENSORS:
            self.fail(f"{len(found)} tensors, at most {MAX_TENSORS} are allowed")
        return found

    def _unique(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(name for index, (name, _) in enumerate(pairs) if name in dict(pairs[:index]))
            self.fail(f"the header has the key '{twice[:MAX_NAME]}' twice")
        return found

    def tensor(self, name: str, entry: object) -> StoredTensor:
        """One entry, checked for itself."""
        if len(name) > MAX_NAME:
            self.fail(f"a tensor's name has {len(name)} characters, at most {MAX_NAME} are allowed")
        if not isinstance(entry, dict):
            self.fail(f"tensor '{name}' is not described by an object")
        dtype, shape = entry.get("dtype"), entry.get("shape")
        if not isinstance(dtype, str):
            self.fail(f"tensor '{name}' has no type")
        if dtype not in _ITEM_BYTES:
            raise UnsupportedModel(f"{self.label}: tensor '{name}' is of type '{dtype[:32]}', which is not known here")
        if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
            self.fail(f"tensor '{name}' has no shape of at most {MAX_DIMENSIONS} whole numbers")
        offsets = entry.get("data_offsets")
        if not _are_counts(offsets) or len(offsets) != 2:
            self.fail(f"tensor '{name}' does not say where its bytes begin and end")
        nbytes = prod(shape) * _ITEM_BYTES[dtype]  # Python's integers do not overflow
        if offsets[1] - offsets[0] != nbytes:
            self.fail(f"tensor '{name}' of {dtype} {tuple(shape)} needs {nbytes} bytes, {offsets} are named")
        return StoredTensor(name, dtype, tuple(shape), self.begin + offsets[0], nbytes)

    def check_places(self, tensors: list[StoredTensor], file_bytes: int) -> None:
        """Each tensor begins where the one before ends, and the last one ends with the file."""
        end, before = self.begin, "the header"
        for tensor in tensors:
            if tensor.offset < end:
                self.fail(f"tensor '{tensor.name}' overlaps {before}")
            if tensor.offset > end:
                self.fail(f"{tensor.offset - end} bytes between {before} and tensor '{tensor.name}' belong to nothing")
            end, before = tensor.offset + tensor.nbytes, f"tensor '{tensor.name}'"
            if end > file_bytes:
                self.fail(f"{before} is meant to end at byte {end}, the file has {file_bytes}; is it truncated?")
        if end != file_bytes:
            self.fail(f"{file_bytes - end} bytes behind {before} belong to nothing")


def _are_counts(found: object) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(type(one) is int and 0 <= one <= _LARGEST for one in found)
