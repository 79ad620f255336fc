"""The values in a GGUF header: a cursor that never reads past the file, and metadata decoded only when asked for.

Knows the format's scalars, strings and arrays; knows nothing of tensors or of what a key means.
"""

from __future__ import annotations

import enum
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from hyperlane.errors import MalformedModel, UnsupportedModel

MAX_KEY_BYTES = 65_535
MAX_ARRAY_ITEMS = 1 << 23
"""All arrays of one file together. The largest vocabularies have 2^18 words and twice as many merges."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class ValueType(enum.IntEnum):
    """The type numbers of the format."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_DTYPES: Mapping[ValueType, np.dtype[np.generic]] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("<u1"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}
_FLOATS = frozenset({ValueType.FLOAT32, ValueType.FLOAT64})
_INTEGERS = frozenset(_DTYPES) - _FLOATS - {ValueType.BOOL}


class IncompleteHeader(MalformedModel):
    """The file goes on where the bytes that are here end."""


class Cursor:
    """A position in a file. Every read is checked against the file's size before it happens.

    `data` may be the file's beginning alone; then IncompleteHeader says that more is needed.
    """

    def __init__(self, data: mmap.mmap | bytes, label: str, file_bytes: int) -> None:
        self.data = data
        self._file_bytes = file_bytes
        self.label = label
        self.at = 0
        self._items_left = MAX_ARRAY_ITEMS

    def fail(self, what: str) -> NoReturn:
        """Raise MalformedModel that names the file and the position."""
        raise MalformedModel(f"{self.label}: {what} (at byte {self.at})")

    def skip(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they begin."""
        begin = self.at
        if count > len(self.data) - begin:
            left = self._file_bytes - begin
            if count <= left:
                raise IncompleteHeader(f"{self.label}: {what} lies beyond the first {len(self.data)} bytes")
            self.fail(f"{what} needs {count} bytes, the file has {left} left; is it truncated?")
        self.at = begin + count
        return begin

    def u32(self, what: str) -> int:
        """An unsigned 32-bit number."""
        return int(_U32.unpack_from(self.data, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        """An unsigned 64-bit number."""
        return int(_U64.unpack_from(self.data, self.skip(8, what))[0])

    def text(self, what: str, max_bytes: int) -> str:
        """A length-prefixed UTF-8 string of at most `max_bytes`."""
        length = self.u64(f"{what}'s length")
        if length > max_bytes:
            self.fail(f"{what} has {length} bytes, at most {max_bytes} are allowed")
        begin = self.skip(length, what)
        return decode(self.data[begin : self.at], f"{self.label}: {what}")

    def value(self, key: str) -> Value:
        """Step over the value of a key and remember where it is."""
        kind = self._kind(key)
        if kind is ValueType.ARRAY:
            kind = self._kind(key)
            if kind is ValueType.ARRAY:
                raise UnsupportedModel(f"{self.label}: '{key}' is an array of arrays, which Hyperlane does not read")
            count = self.u64(f"'{key}'s count")
            return Value(kind, self._skip_array(key, kind, count), count)
        if kind is ValueType.STRING:
            return Value(kind, self._skip_strings(key, 1), None)
        return Value(kind, self.skip(_DTYPES[kind].itemsize, f"'{key}'"), None)

    def _kind(self, key: str) -> ValueType:
        number = self.u32(f"'{key}'s type")
        if number > max(ValueType):
            self.fail(f"'{key}' has the unknown value type {number}")
        return ValueType(number)

    def _skip_array(self, key: str, kind: ValueType, count: int) -> int:
        if count > self._items_left:
            self.fail(f"'{key}' claims {count} items; a file may hold {MAX_ARRAY_ITEMS} in all its arrays together")
        self._items_left -= count
        if kind is ValueType.STRING:
            return self._skip_strings(key, count)
        return self.skip(count * _DTYPES[kind].itemsize, f"array '{key}'")

    def _skip_strings(self, key: str, count: int) -> int:
        # The hot loop of opening a file (a vocabulary has 10^5 words), hence the local names and the single check.
        begin, at, data = self.at, self.at, self.data
        last, length_of = len(data) - 8, _U64.unpack_from
        for _ in range(count):
            if at > last:
                self._strings_end(key, at + 8)
            at += 8 + length_of(data, at)[0]
        if at > len(data):
            self._strings_end(key, at)
        self.at = at
        return begin

    def _strings_end(self, key: str, needed: int) -> NoReturn:
        if needed <= self._file_bytes:
            raise IncompleteHeader(
                f"{self.label}: the strings of '{key}' go on beyond the first {len(self.data)} bytes"
            )
        self.at = min(needed, len(self.data))
        self.fail(f"the strings of '{key}' reach beyond the file's end")


@dataclass(frozen=True, slots=True)
class Value:
    """Where a value lies. `kind` is the items' type of an array; `count` is None for a scalar."""

    kind: ValueType
    at: int
    count: int | None


class Metadata:
    """The key-value part of a header. Values are decoded when asked for, so that a huge vocabulary costs nothing.

    Every accessor returns None when the file has no such key, and raises MalformedModel when the value is of
    another type or does not decode.
    """

    def __init__(self, data: mmap.mmap | bytes, label: str, values: Mapping[str, Value]) -> None:
        self._data = data
        self._label = label
        self._values = values

    def keys(self) -> tuple[str, ...]:
        """Every key, in file order."""
        return tuple(self._values)

    def string(self, key: str) -> str | None:
        """A string."""
        value = self._find(key, frozenset({ValueType.STRING}), array=False, wanted="a string")
        return None if value is None else self._strings(key, value.at, 1)[0]

    def integer(self, key: str) -> int | None:
        """An integer of any width."""
        value = self._find(key, _INTEGERS, array=False, wanted="an integer")
        return None if value is None else int(self._numbers(value, 1).item())

    def floating(self, key: str) -> float | None:
        """A float of any width, or an integer."""
        value = self._find(key, _FLOATS | _INTEGERS, array=False, wanted="a number")
        return None if value is None else float(self._numbers(value, 1).item())

    def boolean(self, key: str) -> bool | None:
        """A boolean."""
        value = self._find(key, frozenset({ValueType.BOOL}), array=False, wanted="a boolean")
        if value is None:
            return None
        byte = int(self._numbers(value, 1).item())
        if byte > 1:
            raise MalformedModel(f"{self._label}: '{key}' is a boolean with the value {byte}")
        return byte == 1

    def strings(self, key: str) -> list[str] | None:
        """An array of strings."""
        value = self._find(key, frozenset({ValueType.STRING}), array=True, wanted="an array of strings")
        return None if value is None else self._strings(key, value.at, value.count or 0)

    def integers(self, key: str) -> list[int] | None:
        """An array of integers; booleans count as 0 and 1."""
        value = self._find(key, _INTEGERS | {ValueType.BOOL}, array=True, wanted="an array of integers")
        return None if value is None else [int(item) for item in self._numbers(value, value.count or 0).tolist()]

    def floats(self, key: str) -> list[float] | None:
        """An array of floats or integers."""
        value = self._find(key, _FLOATS | _INTEGERS, array=True, wanted="an array of numbers")
        return None if value is None else [float(item) for item in self._numbers(value, value.count or 0).tolist()]

    def count(self, key: str) -> int | None:
        """How many items an array has, without decoding them."""
        value = self._find(key, frozenset(ValueType), array=True, wanted="an array")
        return None if value is None else value.count

    def is_array(self, key: str) -> bool:
        """Whether the key exists and holds an array: some keys are either one number or one for each layer."""
        value = self._values.get(key)
        return value is not None and value.count is not None

    def _find(self, key: str, kinds: frozenset[ValueType], *, array: bool, wanted: str) -> Value | None:
        value = self._values.get(key)
        if value is None:
            return None
        if value.kind not in kinds or (value.count is not None) != array:
            found = value.kind.name + ("" if value.count is None else " array")
            raise MalformedModel(f"{self._label}: '{key}' is {wanted} in every sound file, here it is of type {found}")
        return value

    def _numbers(self, value: Value, count: int) -> npt.NDArray[np.generic]:
        return np.frombuffer(self._data, _DTYPES[value.kind], count, value.at)

    def _strings(self, key: str, at: int, count: int) -> list[str]:
        # Opening walked these strings, so every length here is known to lie inside the file.
        data, length_of = self._data, _U64.unpack_from
        found = []
        try:
            for _ in range(count):
                end = at + 8 + length_of(data, at)[0]
                found.append(data[at + 8 : end].decode())
                at = end
        except UnicodeDecodeError as error:
            raise MalformedModel(f"{self._label}: item {len(found)} of '{key}' is not UTF-8: {error}") from None
        return found


def decode(raw: bytes, what: str) -> str:
    """UTF-8 text; MalformedModel says what it was meant to be."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise MalformedModel(f"{what} is not UTF-8: {error}") from None
