"""What a tensor server serves from: one model's file, or the cache of a worker. Knows no caller."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from hyperlane.errors import TransferError
from hyperlane.models.weights import TensorSource
from hyperlane.store.tensor_store import TensorStore, map_tensor


class Shelf(Protocol):
    """Tensors by model and name. From any thread."""

    def held(self, fingerprint: str) -> Mapping[str, str] | None:
        """The tensors of a model that are here, by name, with their digests in hex; None: all of them."""
        ...

    def tensor(self, fingerprint: str, name: str) -> memoryview:
        """A tensor's bytes. Raises TransferError when it is not here."""
        ...


class FileShelf:
    """One model."""

    def __init__(self, fingerprint: str, source: TensorSource) -> None:
        self._fingerprint = fingerprint
        self._source = source

    def held(self, fingerprint: str) -> Mapping[str, str] | None:
        """As `Shelf.held`."""
        return None if fingerprint == self._fingerprint else {}

    def tensor(self, fingerprint: str, name: str) -> memoryview:
        """As `Shelf.tensor`."""
        if fingerprint != self._fingerprint:
            raise TransferError("this tensor server has another model: start the head again")
        if self._source.info(name) is None:
            raise TransferError(f"the model has no tensor '{name}'")
        return self._source.read(name).data


class StoreShelf:
    """Whatever is whole in a worker's cache. Who asks checks the digest, so it is not read twice here."""

    def __init__(self, root: Path) -> None:
        self._store = TensorStore(root)

    def held(self, fingerprint: str) -> Mapping[str, str]:
        """As `Shelf.held`."""
        return self._store.digests(fingerprint)

    def tensor(self, fingerprint: str, name: str) -> memoryview:
        """As `Shelf.tensor`."""
        try:
            return map_tensor(self._store.path(fingerprint, name)).data
        except OSError as error:
            raise TransferError(f"this worker does not hold tensor '{name}' any more") from error
