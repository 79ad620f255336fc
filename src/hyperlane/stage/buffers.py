"""The memory of an engine that frames are received into and that its runs read and write. Made once, kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hyperlane.core import ElementType, Precision, StageSpec
from hyperlane.stage.memory import Memory
from hyperlane.stage.runs import RUN_TOKENS
from hyperlane.wire.packing import BLOCK_BYTES, NOT_FINITE, token_bytes

Values = npt.NDArray[Any]

DTYPES: dict[ElementType, np.dtype[Any]] = {
    ElementType.F32: np.dtype(np.float32),
    ElementType.F16: np.dtype(np.float16),
}
MOST_STAND_INS = 16
"""Tokens that may be computed after a frame's last one, to fill up a run."""

_NOT_FINITE_HALF = 0x7C00
"""A float16 whose exponent is all ones, without its sign."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """What goes in and out of a stage, token-major: token ids [tokens] of a first stage, else hidden [tokens, …].

    Hidden states are [tokens, hidden] of the link's type where it does not pack, else uint8 [tokens, token bytes].
    `frame_in` and `frame_out` hold a whole frame; `slots_in` and `slots_out` one token of each slot, by slot, so that
    a range of slots is contiguous. `frame_out` and `slots_out` are None on a last stage.
    `aside`: where a run that takes one-token rows and a prompt's piece has both, in `frame_in` and `frame_out`.
    `fused`: `slots_in` behind room for what goes in beside it, so that one copy takes both; None: it lies alone.
    `banks`: where a frame's tokens begin in these two, for each of its banks.
    """

    frame_in: Values
    slots_in: Values
    frame_out: Values | None
    slots_out: Values | None
    aside: int
    banks: tuple[int, int]
    fused: Values | None = None

    @classmethod
    def make(cls, spec: StageSpec, memory: Memory, element: ElementType, header: int = 0) -> Buffers:
        """Buffers for a stage's largest frame. `header`: bytes before `slots_in`, whole alignments."""
        aside = spec.max_step_tokens + MOST_STAND_INS
        second = aside + spec.slots + RUN_TOKENS + 1
        tokens = second + aside

        def hidden(precision: Precision) -> tuple[tuple[int, ...], np.dtype[Any]]:
            if precision.packs:
                return (token_bytes(spec.model.hidden, precision, element),), np.dtype(np.uint8)
            return (spec.model.hidden,), DTYPES[element if precision is Precision.RAW else ElementType.F32]

        shape, dtype = ((), np.dtype(np.int32)) if spec.is_first else hidden(spec.precision_in)

        def passed(count: int) -> Values | None:
            if spec.is_last:
                return None
            shape, dtype = hidden(spec.precision_out)
            return memory.array((count, *shape), dtype)

        slots = header + spec.slots * math.prod(shape) * dtype.itemsize
        fused = memory.array((slots,), np.uint8)
        slots_in = fused[header:].view(dtype).reshape(spec.slots, *shape)
        frame_in = memory.array((tokens, *shape), dtype)
        ends = passed(tokens), passed(spec.slots)
        return cls(frame_in, slots_in, *ends, aside, (0, second), fused if header else None)

    def fused_with(self, values: Values, nbytes: int) -> Values | None:
        """`nbytes` before `slots_in`, and of it `values`, which begin it; None: there is no room, or it is not they."""
        if self.fused is None or values.ctypes.data != self.slots_in.ctypes.data:
            return None
        header = self.fused.nbytes - self.slots_in.nbytes
        return self.fused[header - nbytes : header + values.nbytes] if nbytes <= header else None

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        outputs = sum(array.nbytes for array in (self.frame_out, self.slots_out) if array is not None)
        return self.frame_in.nbytes + self.slots_in.nbytes + outputs


def all_finite(values: Values, precision: Precision = Precision.RAW) -> bool:
    """Whether no hidden state is infinite or not a number.

    May say no where float32 values near the largest add up to it, and of packed ones beyond what scales cover.
    """
    if precision.packs:
        return int(values[..., :: BLOCK_BYTES[precision]].max(initial=0)) < NOT_FINITE
    if values.dtype == np.float16:
        magnitudes = values.view(np.uint16) & 0x7FFF  # comparing bits is some 20 times faster than adding halves
        return int(magnitudes.max(initial=0)) < _NOT_FINITE_HALF
    return bool(np.isfinite(np.add.reduce(values, axis=None)))


def as_bytes(array: npt.NDArray[np.generic]) -> memoryview:
    """The memory of a contiguous array as plain bytes; writable where the array is."""
    return array.reshape(-1).view(np.uint8).data
