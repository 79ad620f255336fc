"""What a link's values are multiplied by before they are packed: from the norms of the layer that reads them.

Both ends come to the same gains from the same tensors, so nothing of them crosses the link.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hyperlane.core import StageSpec
from hyperlane.models.layout import UnitLayout, link_layouts
from hyperlane.store.ready_file import ReadyUnit

Floats = npt.NDArray[np.float32]

LEAST = 0.02
"""A weight counts as at least this part of the root mean square of all."""


@dataclass(frozen=True, slots=True, eq=False)
class LinkGains:
    """Of a stage's two links, float32 [hidden]; None where values are not packed."""

    received: Floats | None = None
    sent: Floats | None = None


def link_gains(spec: StageSpec, read: Callable[[UnitLayout], Sequence[Floats]]) -> LinkGains:
    """`read`: the vectors of a layout, float32 [hidden] each."""
    before, after = link_layouts(spec)
    return LinkGains(
        None if before is None else gains_of(read(before)),
        None if after is None else gains_of(read(after)),
    )


def gains_of(norms: Sequence[Floats]) -> Floats:
    """A channel's weight in the norms, to the power of 3/4: an error counts as much as what reads it makes of it.

    Sums are exact, and all else is rounded as IEEE 754 says, so that any two machines agree to the bit.
    """
    squares = np.zeros(len(norms[0]))
    for norm in norms:
        each = np.square(norm.astype(np.float64))
        mean = math.fsum(each) / len(each)
        squares += (each / mean if mean > 0 else np.ones(len(each))) / len(norms)
    weights = np.sqrt(np.maximum(squares, LEAST**2))
    root = np.sqrt(weights)
    return (root * np.sqrt(root)).astype(np.float32)


def vectors_of(unit: ReadyUnit) -> list[Floats]:
    """The values of a unit that has vectors only."""
    return [np.fromfile(unit.data, np.float32, tensor.shape[0], offset=tensor.span.offset) for tensor in unit.tensors]
