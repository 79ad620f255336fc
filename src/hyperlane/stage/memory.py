"""Where an engine's runs read and write: the seam between an engine and a device's memory, and the host's own.

An engine works on NumPy arrays. On a device with memory of its own each has a twin there, at `address`; `push` and
`pull` copy between the two, in order with the runs.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class Entries(Protocol):
    """KV entries [slots, kv_heads, positions, head_dim] of one layer and kind, wherever they lie.

    `provider`: what ONNX Runtime calls that device.
    """

    @property
    def provider(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def nbytes(self) -> int: ...

    def address(self, slot: int) -> int:
        """Where those of a slot begin."""
        ...

    def copy(self, source: int, destination: int, count: int) -> None:
        """Copy the first `count` entries of a slot to another."""
        ...


class Memory(Protocol):
    """The memory of one device. `captures`: runs can be captured and replayed, if their shapes are kept.

    `copies`: `push` copies, so that one of what lies side by side costs less than two.
    `takes_when_bound`: a run sees what was in an array when it was bound, so that it is to be bound anew.
    """

    @property
    def provider(self) -> str:
        """What ONNX Runtime calls the device."""
        ...

    @property
    def index(self) -> int:
        """Which of them."""
        ...

    @property
    def captures(self) -> bool: ...

    @property
    def copies(self) -> bool: ...

    @property
    def takes_when_bound(self) -> bool: ...

    def most_tokens(self, window: int) -> int:
        """Of a row in one run, where the device computes more of them wrongly; 0 for no limit.

        `window`: of local layers, 0 for a model without.
        """
        ...

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A zeroed array that runs can read and write; it lasts until `close`."""
        ...

    def lend(self, nbytes: int) -> Bytes:
        """At least so many bytes of the same kind, until they are given back."""
        ...

    def give_back(self, block: Bytes) -> None:
        """Take back what `lend` gave."""
        ...

    def entries(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Entries:
        """KV entries, all zero."""
        ...

    def address(self, array: npt.NDArray[Any]) -> int:
        """Where runs find a contiguous array, or part of one, that came from here."""
        ...

    def push(self, array: npt.NDArray[Any]) -> None:
        """Let the runs that follow see what is in the array."""
        ...

    def pull(self, array: npt.NDArray[Any]) -> None:
        """Bring what the runs before wrote; it is there after `wait`."""
        ...

    def wait(self) -> None:
        """Until all runs and copies are done."""
        ...

    def room(self) -> tuple[int, int]:
        """Free and all bytes of it; zeros where that is nobody's question."""
        ...

    def close(self) -> None:
        """Free the device's memory. Idempotent."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class HostEntries:
    """Implements `Entries`. Pages are taken from the system when they are first written."""

    values: npt.NDArray[Any]
    provider: str = "cpu"

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Entries`."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Entries`."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """See `Entries`."""
        return self.values.nbytes

    def address(self, slot: int) -> int:
        """See `Entries`."""
        return int(self.values[slot:].ctypes.data)

    def copy(self, source: int, destination: int, count: int) -> None:
        """See `Entries`."""
        self.values[destination, :, :count] = self.values[source, :, :count]


class HostMemory:
    """Implements `Memory`: runs see the arrays themselves, so there is nothing to copy and to wait for."""

    provider = "cpu"
    index = 0
    captures = False
    copies = False
    takes_when_bound = False

    def most_tokens(self, window: int) -> int:
        """See `Memory`."""
        return 0

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See `Memory`."""
        return np.zeros(tuple(shape), dtype)

    def lend(self, nbytes: int) -> Bytes:
        """See `Memory`."""
        return np.zeros(nbytes, np.uint8)

    def give_back(self, block: Bytes) -> None:
        """See `Memory`."""

    def entries(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Entries:
        """See `Memory`."""
        return HostEntries(_untouched(shape, np.dtype(dtype)))

    def address(self, array: npt.NDArray[Any]) -> int:
        """See `Memory`."""
        return int(array.ctypes.data)

    def push(self, array: npt.NDArray[Any]) -> None:
        """See `Memory`."""

    def pull(self, array: npt.NDArray[Any]) -> None:
        """See `Memory`."""

    def wait(self) -> None:
        """See `Memory`."""

    def room(self) -> tuple[int, int]:
        """See `Memory`."""
        return 0, 0

    def close(self) -> None:
        """See `Memory`."""


def _untouched(shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Zeros that take no memory until they are written; `np.zeros` may reuse, and so clear, memory that was freed."""
    return np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype).reshape(tuple(shape))
