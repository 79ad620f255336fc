"""How an engine computes: arithmetic, form of the weights, KV element. Chosen by whoever starts a worker."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Arithmetic(enum.StrEnum):
    """INT8: activations are quantised for matmuls with quantised weights. F32: the reference, slower."""

    INT8 = "int8"
    F32 = "f32"


class BlockOffsets(enum.StrEnum):
    """How weights w = d·q + m (Q4_1, Q4_K, …) are held.

    FOLDED: 4 bits, the offsets within the packed weights: no error, no cost (COLUMNS where the engine's packing is
    not understood, see `stage.folding`).
    COLUMNS: 4 bits, the offsets as further quantised columns (error ≤ d/28 of the row's largest block scale).
    WIDE: 8 bits, zero points of 1/16 steps (error ≤ d/32): twice the memory, faster prompts.
    FINE: as COLUMNS, but of what is left there are further columns, and there are no zero points: error ≤ 1/340 of the
    largest offset of 32 neighbours, less than float16 makes of a weight. Where columns are no multiple of 2048, EXACT.
    EXACT: 4 bits, the offsets as a float32 matmul: no error, slowest.
    """

    FOLDED = "folded"
    COLUMNS = "columns"
    WIDE = "wide"
    FINE = "fine"
    EXACT = "exact"


class KvElement(enum.StrEnum):
    """Type of the KV entries."""

    F32 = "f32"
    F16 = "f16"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The defaults are the fast path.

    `spinning`: idle threads poll for work, which helps only where nothing else wants the cores.
    `device`: a provider's name in `stage.providers`, which may need another arithmetic or form of the weights, and
    then takes it; `device_index`: which of its devices. `capture`: replay decode steps where the device can.
    `fuse`: the small things that a batch needs go to a device in one copy with its tokens or hidden states.
    `single`: float32 throughout, for a device that computes in float16 as a rule, but does not have it.
    """

    arithmetic: Arithmetic = Arithmetic.INT8
    offsets: BlockOffsets = BlockOffsets.FOLDED
    kv: KvElement = KvElement.F16
    spinning: bool = False
    device: str = "cpu"
    device_index: int = 0
    capture: bool = True
    fuse: bool = True
    single: bool = False


REFERENCE = EngineOptions(Arithmetic.F32, BlockOffsets.EXACT, KvElement.F32)
"""No arithmetic but float32: what results are compared with."""
