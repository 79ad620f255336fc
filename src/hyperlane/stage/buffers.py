"""The host memory of an engine that frames are received into and that its runs read and write. Made once, kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hyperlane.core import StageSpec

Values = npt.NDArray[np.float32] | npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Buffers:
    """What goes in and out of a stage, token-major: token ids [tokens] of a first stage, else hidden [tokens, hidden].

    `frame_in` and `frame_out` hold a whole frame; `slots_in` and `slots_out` one token of each slot, by slot, so that
    a range of slots is contiguous. `frame_out` and `slots_out` are None on a last stage.
    """

    frame_in: Values
    slots_in: Values
    frame_out: npt.NDArray[np.float32] | None
    slots_out: npt.NDArray[np.float32] | None

    @classmethod
    def make(cls, spec: StageSpec) -> Buffers:
        """Buffers for a stage's largest frame."""
        hidden = spec.model.hidden
        tokens = spec.max_step_tokens + 1  # a stand-in may come after the last
        return cls(
            _input(spec, tokens),
            _input(spec, spec.slots),
            None if spec.is_last else np.zeros((tokens, hidden), np.float32),
            None if spec.is_last else np.zeros((spec.slots, hidden), np.float32),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        outputs = sum(array.nbytes for array in (self.frame_out, self.slots_out) if array is not None)
        return self.frame_in.nbytes + self.slots_in.nbytes + outputs


def _input(spec: StageSpec, tokens: int) -> Values:
    return np.zeros(tokens, np.int32) if spec.is_first else np.zeros((tokens, spec.model.hidden), np.float32)


def as_bytes(array: npt.NDArray[np.generic]) -> memoryview:
    """The memory of a contiguous array as plain bytes; writable where the array is."""
    return array.reshape(-1).view(np.uint8).data
