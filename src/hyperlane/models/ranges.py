"""The seam between files that lie elsewhere and whoever needs some of their bytes: ranges of a file, places of tensors.

Knows no protocol and no file format: the hub, a URL and a folder offer `ByteRanges`, readers of formats `TensorPlaces`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hyperlane.models.weights import TensorInfo


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a model as the hub or a web server has it: all that another machine needs to read the same bytes.

    `url`: of this very content where the server has such addresses (a commit, not a branch). `size`: bytes. `digest`:
    hex SHA-256 of the whole file as the server states it, empty where it does not. `etag`: what the server calls this
    version, so that a file that changed in the meantime is noticed; empty where it says nothing.
    """

    url: str
    size: int
    digest: str = ""
    etag: str = ""


class ByteRanges(Protocol):
    """One file that is read in pieces. From any thread, several at a time; blocks."""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        ...

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the whole file, as its server states it; empty where it does not."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly the bytes `offset` … `offset + length` − 1.

        Raises:
            TransferError: they cannot be had, also not after tries, or the file has become another one.

        """
        ...

    def close(self) -> None:
        """Let go of connections; reads that wait end with TransferError. Idempotent."""
        ...


def start_digest(info: TensorInfo) -> hashlib._Hash:
    """SHA-256 over a tensor's type and shape, to be updated with its bytes: equal tensors convert to equal matrices."""
    return hashlib.sha256(f"{info.type} {info.shape}\n".encode())


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor's bytes lie: from `offset` of file number `file` on.

    `digest`: the tensor's, in hex, as `start_digest` begins it; empty where nobody has read the bytes yet.
    """

    info: TensorInfo
    file: int
    offset: int
    digest: str = ""


class TensorPlaces(Protocol):
    """A model whose tensors are known by place: its headers were read, its weights perhaps not."""

    @property
    def remote_files(self) -> Sequence[RemoteFile]:
        """The files by number; empty where the model lies on this machine alone."""
        ...

    def place(self, name: str) -> TensorPlace | None:
        """A tensor's place; None when the model has none of that name."""
        ...
