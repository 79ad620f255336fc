"""Random matrices in GGML's block formats, also in those that the `gguf` package cannot quantise to.

Owns the byte layout of a K type's scales as far as making them plausible needs it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

# Where a block keeps its float16 scale (d) and, if it has one, its float16 scale of the minima (dmin): byte offsets.
_SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108, None),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208, None),
}


def random_matrix(
    kind: str, rows: int, columns: int, *, std: float, random: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Bytes uint8 [rows, bytes of a row] of a matrix whose values have mean near 0 and about the given deviation.

    Types that `gguf` can quantise to hold normally distributed values; K types hold random valid blocks.

    Raises:
        ValueError: `columns` is not a multiple of the type's block.

    """
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    if columns % block:
        raise ValueError(f"{columns} columns are not a multiple of {kind}'s block of {block}")
    if kind in _SCALES:
        blocks = random_blocks(kind, rows * columns // block, std=std, random=random)
        return blocks.reshape(rows, columns // block * block_bytes)
    values = (std * random.standard_normal((rows, columns))).astype(np.float32)
    packed: npt.NDArray[np.generic] = quantize(values, GGMLQuantizationType[kind])
    return packed.view(np.uint8)


def random_blocks(kind: str, count: int, *, std: float, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Random bytes as `count` blocks of a K type, uint8 [count, bytes of a block], scaled to the deviation."""
    d_at, dmin_at = _SCALES[kind]
    blocks = random.integers(0, 256, (count, GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]), dtype=np.uint8)
    spread = random.uniform(0.5, 1.5, (count, 1))
    # The mean of d·sc·q − dmin·m is near 0 when dmin is d times the mean of q, as sc and m are drawn alike.
    ratio = {"Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}.get(kind, 0.0)

    def scaled(scale: float) -> npt.NDArray[np.uint8]:
        blocks[:, d_at : d_at + 2] = (scale * spread).astype(np.float16).view(np.uint8)
        if dmin_at is not None:
            blocks[:, dmin_at : dmin_at + 2] = (scale * ratio * spread).astype(np.float16).view(np.uint8)
        return blocks

    trial: npt.NDArray[np.float32] = dequantize(scaled(1e-2), GGMLQuantizationType[kind])
    return scaled(1e-2 * std / float(trial.std()))
