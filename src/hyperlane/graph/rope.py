"""Rotary tables: cosines and sines by position, as GroupQueryAttention takes them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hyperlane.core import RopeFacts

Table = npt.NDArray[np.float32]


def rotary_tables(rope: RopeFacts, positions: int) -> tuple[Table, Table]:
    """Cosine and sine, float32 [positions, rope.dims / 2]; angles in float64, so that far positions stay exact."""
    pairs = rope.dims // 2
    frequency = rope.theta ** (-np.arange(pairs, dtype=np.float64) * 2.0 / rope.dims)
    if rope.factors:
        frequency /= np.asarray(rope.factors, np.float64)
    angles = np.outer(np.arange(positions, dtype=np.float64) / rope.scale, frequency)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
