"""Types of the values in a stage's graph: what a provider computes in, and what a family cannot be held in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from hyperlane.models.layout import SINGLE_STREAM

_F32, _F16 = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_DTYPES: dict[int, np.dtype[Any]] = {_F32: np.dtype(np.float32), _F16: np.dtype(np.float16)}


@dataclass(frozen=True, slots=True)
class Numbers:
    """TensorProto's numbers of types. `stream`: the residual stream, its norms, and what a raw link carries.

    `matrix`: what is multiplied, and scales. `cache`: KV entries, and the arithmetic around attention.
    """

    stream: int
    matrix: int
    cache: int

    @property
    def stream_dtype(self) -> np.dtype[Any]:
        """NumPy's name for it."""
        return _DTYPES[self.stream]

    @property
    def matrix_dtype(self) -> np.dtype[Any]:
        """NumPy's name for it."""
        return _DTYPES[self.matrix]

    @property
    def cache_dtype(self) -> np.dtype[Any]:
        """NumPy's name for it."""
        return _DTYPES[self.cache]


def numbers_of(family: str, *, half: bool, half_cache: bool) -> Numbers:
    """Float32 throughout; with KV entries of float16; or float16 wherever the family allows it."""
    if half:
        return Numbers(_F32 if family in SINGLE_STREAM else _F16, _F16, _F16)
    return Numbers(_F32, _F32, _F16 if half_cache else _F32)
