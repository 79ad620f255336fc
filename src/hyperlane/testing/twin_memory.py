"""A device with memory of its own, made of the host's: runs on the processor see only what was pushed. For tests."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hyperlane.stage.memory import Bytes, HostMemory


@dataclass(frozen=True, slots=True, eq=False)
class _Twin:
    """Bytes that the engine sees, and as many that runs see."""

    host: Bytes
    device: Bytes


class TwinMemory(HostMemory):
    """Implements `Memory` as a card's does, and notes what is done: (call, bytes)."""

    copies = True

    def __init__(self, *, captures: bool = False) -> None:
        self.captures = captures
        self.done: list[tuple[str, int]] = []
        self._twins: list[_Twin] = []

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See `Memory`."""
        values = np.zeros(tuple(shape), dtype)
        host = values.reshape(-1).view(np.uint8)
        self._twins.append(_Twin(host, np.zeros(host.nbytes, np.uint8)))
        return values

    def lend(self, nbytes: int) -> Bytes:
        """See `Memory`."""
        return self.array((nbytes,), np.uint8)

    def address(self, array: npt.NDArray[Any]) -> int:
        """See `Memory`."""
        place = array.ctypes.data
        for twin in self._twins:
            if 0 <= place - twin.host.ctypes.data <= twin.host.nbytes - array.nbytes:
                return int(twin.device.ctypes.data + place - twin.host.ctypes.data)
        raise AssertionError("an array that is not of this memory")

    def push(self, array: npt.NDArray[Any]) -> None:
        """See `Memory`."""
        self._copy("push", self.address(array), array.ctypes.data, array.nbytes)

    def pull(self, array: npt.NDArray[Any]) -> None:
        """See `Memory`."""
        self._copy("pull", array.ctypes.data, self.address(array), array.nbytes)

    def wait(self) -> None:
        """See `Memory`."""
        self.done.append(("wait", 0))

    def _copy(self, call: str, to: int, source: int, nbytes: int) -> None:
        if nbytes:
            self.done.append((call, nbytes))
            ctypes.memmove(to, source, nbytes)
