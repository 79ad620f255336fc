"""The KV arena of a stage: one array for the keys and one for the values of each layer, sliced by ranges of slots."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hyperlane.core import StageSpec
from hyperlane.graph import names

KvArray = npt.NDArray[np.float32] | npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class KvArena:
    """Arrays [slots, kv_heads, context + 1, head_dim] by layer and kind; the spare entry is for padding rows.

    Pages are taken from the system when they are first written, so an arena costs what was used of it.
    """

    arrays: dict[tuple[int, str], KvArray]

    @classmethod
    def make(cls, spec: StageSpec, *, half: bool) -> KvArena:
        """An empty arena for a stage, of float16 or float32."""
        facts = spec.model
        shape = (spec.slots, facts.kv_heads, positions(spec), facts.head_dim)
        arrays: dict[tuple[int, str], KvArray] = {}
        for layer in range(spec.layers.first, spec.layers.last):
            for kv in names.KV:
                arrays[layer, kv] = _untouched(shape, half=half)
        return cls(arrays)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole arena."""
        return sum(array.nbytes for array in self.arrays.values())

    def views(self, first: int, count: int) -> Iterator[tuple[int, str, KvArray]]:
        """Layer, kind and the contiguous entries of slots `first` … `first + count` − 1."""
        for (layer, kv), array in self.arrays.items():
            yield layer, kv, array[first : first + count]

    def copy(self, source: int, destination: int, count: int) -> None:
        """Copy the first `count` entries of a slot to another."""
        for array in self.arrays.values():
            array[destination, :, :count] = array[source, :, :count]


def _untouched(shape: tuple[int, ...], *, half: bool) -> KvArray:
    """Zeros that take no memory until they are written; `np.zeros` may reuse, and so clear, memory that was freed."""
    memory = mmap.mmap(-1, math.prod(shape) * (2 if half else 4))
    if half:
        return np.frombuffer(memory, np.float16).reshape(shape)
    return np.frombuffer(memory, np.float32).reshape(shape)


def positions(spec: StageSpec) -> int:
    """Entries of a slot: its context and a spare one."""
    return spec.context + 1
