"""A model that has shapes and types, but made-up weights: what is measured on a device without any file.

Values are random within a few rows, which repeat: kernels take the same time, and large matrices are made at once.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hyperlane.core import ModelFacts
from hyperlane.models import inventory
from hyperlane.models.quant import OTHER_TYPES
from hyperlane.models.random_blocks import random_matrix
from hyperlane.models.weights import TensorInfo

RANDOM_ROWS = 16
STAND_IN = "Q8_0"
"""For types that nothing here can write: the engine holds them all as it holds this one."""

Bytes = npt.NDArray[np.uint8]


class SyntheticSource:
    """Implements `TensorSource` for a model of `len(layers)` layers."""

    def __init__(self, facts: ModelFacts, layers: Sequence[Sequence[str]], embedding: str, output: str) -> None:
        """`layers`: for each layer the GGML types of its tensors, in the order of `inventory.layer_tensors`.

        Raises:
            ValueError: a layer has another number of types than tensors.

        """
        self._infos: dict[str, TensorInfo] = {}
        for index, types in enumerate(layers):
            for (name, shape), kind in zip(inventory.layer_tensors(facts, index).items(), types, strict=True):
                self._add(name, shape, kind)
        for name, shape in {**inventory.output_tensors(facts), **inventory.embedding_tensors(facts)}.items():
            self._add(name, shape, output if name == inventory.OUTPUT else embedding)

    def info(self, name: str) -> TensorInfo | None:
        """See `TensorSource`."""
        return self._infos.get(name)

    def names(self) -> Sequence[str]:
        """See `TensorSource`."""
        return list(self._infos)

    def read(self, name: str) -> Bytes:
        """See `TensorSource`."""
        info = self._infos[name]
        if len(info.shape) == 1:
            return np.ones(info.shape, np.float32).view(np.uint8)
        rows, columns = info.shape
        some = _rows_of(info.type, columns, zlib.crc32(name.encode()))
        return np.tile(some, (-(-rows // len(some)), 1))[:rows].reshape(-1)

    def _add(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        kind = "F32" if len(shape) == 1 else STAND_IN if kind in OTHER_TYPES - {"Q2_K"} else kind
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        self._infos[name] = TensorInfo(name, shape, kind, math.prod(shape) // block * block_bytes)


def _rows_of(kind: str, columns: int, seed: int) -> Bytes:
    """Uint8 [RANDOM_ROWS, bytes of a row], such that a product with them is as large as what it multiplies.

    Of each seed other ones: an engine keeps equal matrices once, which then stay in the processor's cache.
    """
    return random_matrix(kind, RANDOM_ROWS, columns, std=columns**-0.5, random=np.random.default_rng(seed))
