"""A ready file: the tensors of one unit, each at an aligned offset, and an index that is checked before it is believed.

The index is a text file beside the data: a SHA-256 in hex, a line end, and the JSON that it is taken of.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

DATA = "weights.bin"
INDEX = "index.json"
FORMAT = 1
ALIGNMENT = 4096
"""Every buffer begins on a page of its own: kernels suppose alignment, and pages that are not used stay on disk."""

_DTYPES = frozenset({"uint8", "float16", "float32"})

Array = npt.NDArray[np.uint8] | npt.NDArray[np.float16] | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `offset` … `offset + length` − 1 of the data."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ReadyTensor:
    """A tensor. `packed`: the buffers that the engine made of it, under its own key for them.

    The values of a packed tensor are kept too: ONNX Runtime recognises its buffers by packing the values once more.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    span: Span
    packed_key: str = ""
    packed: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadyUnit:
    """A unit on disk. `note` is what the writer wanted to know again; `digest` the data's SHA-256."""

    folder: Path
    tensors: tuple[ReadyTensor, ...]
    note: str
    size: int
    digest: str

    @property
    def data(self) -> Path:
        """The file with the tensors' bytes."""
        return self.folder / DATA


@dataclass(frozen=True, slots=True, eq=False)
class NewTensor:
    """A tensor to write; `packed` as in `ReadyTensor`."""

    name: str
    array: Array
    packed_key: str = ""
    packed: tuple[npt.NDArray[np.uint8], ...] = ()


class BadReadyFile(Exception):
    """A ready file is not what was written; the message says in what. It is made again."""


def write_unit(folder: Path, tensors: Sequence[NewTensor], note: str) -> ReadyUnit:
    """Write a unit into an empty folder and make it durable."""
    with (folder / DATA).open("wb") as file:
        writer = _Writer(file)
        written = tuple(_write_tensor(writer, tensor) for tensor in tensors)
        _sync(file)
    unit = ReadyUnit(folder, written, note, writer.size, writer.digest.hexdigest())
    body = json.dumps(
        {
            "format": FORMAT,
            "size": unit.size,
            "digest": unit.digest,
            "note": note,
            "tensors": [asdict(tensor) for tensor in written],
        }
    ).encode()
    with (folder / INDEX).open("wb") as file:
        file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        _sync(file)
    return unit


def read_unit(folder: Path) -> ReadyUnit:
    """Read a unit's index and check it, and the data's size, but not the data.

    Raises:
        FileNotFoundError: there is none.
        BadReadyFile: it is damaged.

    """
    digest, _, body = (folder / INDEX).read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise BadReadyFile(f"{folder / INDEX} is damaged")
    index = json.loads(body)
    if index["format"] != FORMAT:
        raise BadReadyFile(f"{folder / INDEX} has format {index['format']}, not {FORMAT}")
    tensors = tuple(_read_tensor(entry) for entry in index["tensors"])
    unit = ReadyUnit(folder, tensors, index["note"], index["size"], index["digest"])
    size = unit.data.stat().st_size
    if size != unit.size:
        raise BadReadyFile(f"{unit.data} has {size} bytes, not {unit.size}")
    return unit


def data_digest(unit: ReadyUnit) -> str:
    """SHA-256 in hex of the data as it is now."""
    with unit.data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Writer:
    """Counts and hashes what it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, array: npt.NDArray[np.uint8]) -> Span:
        """Write bytes at the next aligned place."""
        self._put(bytes(-self.size % ALIGNMENT))
        span = Span(self.size, array.nbytes)
        self._put(array.data)
        return span

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)


def _write_tensor(writer: _Writer, new: NewTensor) -> ReadyTensor:
    dtype, shape = str(new.array.dtype), tuple(new.array.shape)
    assert dtype in _DTYPES
    span = writer.write(np.ascontiguousarray(new.array).reshape(-1).view(np.uint8))
    return ReadyTensor(new.name, dtype, shape, span, new.packed_key, tuple(writer.write(one) for one in new.packed))


def _read_tensor(entry: dict[str, object]) -> ReadyTensor:
    # The index's own hash was right, so this is what `write_unit` wrote.
    fields = {**entry, "shape": tuple(entry["shape"]), "span": Span(**entry["span"])}  # type: ignore[arg-type]
    fields["packed"] = tuple(Span(**span) for span in entry["packed"])  # type: ignore[attr-defined]
    return ReadyTensor(**fields)  # type: ignore[arg-type]


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
