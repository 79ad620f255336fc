"""The KV arena of a stage: keys and values of each layer, sliced by ranges of slots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperlane.core import StageSpec
from hyperlane.graph import names
from hyperlane.stage.memory import Entries, Memory


@dataclass(frozen=True, slots=True)
class KvArena:
    """Entries [slots, kv_heads, context + 1, head_dim] by layer and kind; the spare one is for padding rows."""

    entries: dict[tuple[int, str], Entries]

    @classmethod
    def make(cls, spec: StageSpec, memory: Memory, *, half: bool) -> KvArena:
        """An empty arena for a stage, of float16 or float32."""
        facts = spec.model
        shape = (spec.slots, facts.kv_heads, positions(spec), facts.head_dim)
        dtype = np.float16 if half else np.float32
        layers = range(spec.layers.first, spec.layers.last)
        return cls({(layer, kv): memory.entries(shape, dtype) for layer in layers for kv in names.KV})

    @property
    def nbytes(self) -> int:
        """Bytes of the whole arena."""
        return sum(entries.nbytes for entries in self.entries.values())

    def copy(self, source: int, destination: int, count: int) -> None:
        """Copy the first `count` entries of a slot to another."""
        for entries in self.entries.values():
            entries.copy(source, destination, count)


def kv_bytes(spec: StageSpec, value_bytes: int = 2) -> int:
    """Bytes of a stage's arena, of float16 by default."""
    facts = spec.model
    return 2 * len(spec.layers) * spec.slots * positions(spec) * facts.kv_heads * facts.head_dim * value_bytes


def positions(spec: StageSpec) -> int:
    """Entries of a slot: its context and a spare one."""
    return spec.context + 1
