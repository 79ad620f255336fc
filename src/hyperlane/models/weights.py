"""The seam between a model file and whoever needs its weights: tensors by name, and matrices in the engine's form."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its file stores it. `shape` is row-major ([out, in] of a matrix); `type` a GGML name (`Q4_K`)."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int


class TensorSource(Protocol):
    """Tensors by name: a memory-mapped file, or a peer that has one. Raises MalformedModel or TransferError."""

    def info(self, name: str) -> TensorInfo | None:
        """What the file says of a tensor; None when the model has none of that name."""
        ...

    def names(self) -> Sequence[str]:
        """Every tensor of the model, in file order."""
        ...

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes as stored, without a copy where the source is mapped."""
        ...


@runtime_checkable
class ExpectingSource(Protocol):
    """A source that fetches: it does so ahead, and by need."""

    def expect(self, names: Sequence[str]) -> None:
        """Say which tensors will be read, in which order; others are fetched when they are read."""
        ...


@dataclass(frozen=True, slots=True)
class OneAtATime:
    """Implements `TensorSource` for several threads over a source that is for one: it is asked by one at a time."""

    source: TensorSource
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def info(self, name: str) -> TensorInfo | None:
        """See `TensorSource`."""
        with self._guard:
            return self.source.info(name)

    def names(self) -> Sequence[str]:
        """See `TensorSource`."""
        with self._guard:
            return self.source.names()

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """See `TensorSource`."""
        with self._guard:
            return self.source.read(name)


@dataclass(frozen=True, slots=True)
class QuantMatrix:
    """A matrix [rows, columns] as `MatMulNBits` holds it: w = scale · (q − zero), plus `offsets` where given.

    `packed`: uint8 [rows, blocks, block · bits / 8], low nibble first. `scales`: float32 [rows, blocks].
    `zeros`: uint8 [rows, ceil(blocks · bits / 8)], or None for 2^(bits − 1). `offsets`: float32 [rows, blocks] that
    are added to every weight of their block (y += offsets · sums of x over the blocks), or None.
    """

    rows: int
    columns: int
    bits: int
    block: int
    packed: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    zeros: npt.NDArray[np.uint8] | None = None
    offsets: npt.NDArray[np.float32] | None = None
