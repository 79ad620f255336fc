"""Tensors as a GGUF file stores them → matrices as the engine multiplies them, with the loss of each form stated.

Works in chunks of rows, so that a matrix of any size needs a few MiB besides its result. Knows no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gguf.quants
import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hyperlane.core import WeightForm
from hyperlane.errors import MalformedModel, UnsupportedModel
from hyperlane.models.quant_blocks import FORMATS, Blocks, Bytes, Floats, Format
from hyperlane.models.quant_layout import pack_nibbles
from hyperlane.models.weights import QuantMatrix, TensorInfo

CHUNK_BYTES = 1 << 18
"""Stored bytes converted at a time: the intermediate arrays, some ten times larger, stay in the cache."""

PLAIN_TYPES = frozenset({"F32", "F16", "BF16"})
"""Types that hold weights in full."""

OTHER_TYPES = frozenset(
    {"Q2_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"}
    | {"TQ1_0", "TQ2_0", "MXFP4"}
)
"""Types that `gguf` dequantises and that are quantised anew."""

_REQUANTISED_BLOCK = 32


def is_supported(kind: str) -> bool:
    """Whether tensors of this GGML type convert."""
    return kind in PLAIN_TYPES or kind in FORMATS or kind in OTHER_TYPES


def matrix_form(
    info: TensorInfo, raw: Bytes, *, exact: bool, weights: WeightForm = WeightForm.FP16
) -> QuantMatrix | Floats:
    """A matrix in the form that the engine multiplies, converted from its stored bytes.

    `weights` says what becomes of the plain types; all others are quantised already.

    =================== ============================ ========================= ====================================
    type                `exact`                      not `exact` ("wide")      loss
    =================== ============================ ========================= ====================================
    F32, F16, BF16      by `weights`:
    · fp16              float32 [rows, columns]      the same                  none
    · int8              8 bit, block 32              the same                  ≤ 1/254 of the block's largest weight
    · int4              4 bit, block 32, zeros       the same                  ≤ 1/15 of the block's range
    Q4_0                4 bit, block 32              the same                  none
    Q5_0, Q8_0          8 bit, block 32              the same                  none
    Q3_K, Q6_K          8 bit, block 16              the same                  none
    Q4_1, Q4_K          4 bit, block 32, zeros and   8 bit, block 32, zeros    exact: none; wide: a block's offset
                        offsets                                                is off by ≤ d/32 (below)
    Q5_1, Q5_K          8 bit, block 32, zeros and   8 bit, block 32, zeros    exact: none; wide: ≤ d/16 (below)
                        offsets
    any other           8 bit, block 32              the same                  ≤ 1/254 of the block's largest weight
    =================== ============================ ========================= ====================================

    Q4_1 and its like store w = d·q + m. Wide: w = (d/f)·(f·q − z) with f = 16 (8 for 5-bit q, so that f·q fits a
    byte) and z = −m·f/d rounded. Where z would not fit 0 … 255, since the block does not reach 0 or begins
    far below, the block is quantised anew to 8 bit over its range widened to 0: each weight is off by ≤ range / 510.
    "None" means up to the rounding of float32 arithmetic. Plain matrices whose columns are no multiple of 32 stay
    float32.

    Raises:
        MalformedModel: the bytes are not as many as the shape says, it is no matrix, or scales are not finite.
        UnsupportedModel: a type that nothing converts.

    """
    _check(info, raw)
    plan = quant_plan(info, exact=exact, weights=weights)
    if plan is None:
        return dequantize(info, raw)
    if len(info.shape) != 2:
        raise MalformedModel(f"tensor '{info.name}' of type {info.type} has the shape {info.shape}, not a matrix's")
    matrix = _allocate(info.shape[0], info.shape[1], plan)
    convert = _converter(info, plan, exact=exact)
    for rows in _chunks(info):
        part = convert(raw[rows.start * _row_bytes(info) : rows.stop * _row_bytes(info)])
        for values in (part.scales, part.offsets):
            if values is not None and not np.isfinite(values).all():
                raise MalformedModel(f"tensor '{info.name}' of type {info.type} holds scales that are not finite")
        _store(matrix, rows, part)
    return matrix


def dequantize(info: TensorInfo, raw: Bytes) -> Floats:
    """The tensor's weights as float32 in its shape, through the `gguf` package.

    Raises:
        MalformedModel: the bytes are not as many as the shape says, or the weights are not finite.
        UnsupportedModel: a type that `gguf` does not dequantise.

    """
    _check(info, raw)
    weights = np.empty(info.shape, np.float32)
    flat = weights.reshape(-1, info.shape[-1])
    for rows in _chunks(info):
        flat[rows.start : rows.stop] = _floats(info, raw[rows.start * _row_bytes(info) : rows.stop * _row_bytes(info)])
    return weights


def form_bytes(info: TensorInfo, *, exact: bool, weights: WeightForm = WeightForm.FP16) -> int:
    """Bytes that `matrix_form`'s result takes, without converting anything."""
    rows, columns = (int(np.prod(info.shape[:-1])), info.shape[-1])
    plan = quant_plan(info, exact=exact, weights=weights)
    if plan is None:
        return rows * columns * 4
    blocks = columns // plan.block
    zeros = -(-blocks * plan.bits // 8) if plan.zeros else 0
    return rows * (columns * plan.bits // 8 + blocks * 4 + zeros + (blocks * 4 if plan.offsets else 0))


@dataclass(frozen=True, slots=True)
class QuantPlan:
    """The form that a type takes. `zeros`, `offsets`: of each block, see `QuantMatrix`."""

    bits: int
    block: int
    zeros: bool = False
    offsets: bool = False


_PLANS = {
    WeightForm.INT8: QuantPlan(8, _REQUANTISED_BLOCK),
    WeightForm.INT4: QuantPlan(4, _REQUANTISED_BLOCK, zeros=True),
}


@dataclass(frozen=True, slots=True)
class _Part:
    """Some blocks in the engine's form, in the order of the file: q [n, block], the others [n]."""

    q: Bytes
    scales: Floats
    zeros: Bytes | None = None
    offsets: Floats | None = None


def quant_plan(info: TensorInfo, *, exact: bool, weights: WeightForm) -> QuantPlan | None:
    """The form that `matrix_form` gives a tensor; None for float32."""
    if info.type in PLAIN_TYPES:
        whole = len(info.shape) == 2 and info.shape[1] % _REQUANTISED_BLOCK == 0
        return _PLANS.get(weights) if whole else None
    known = FORMATS.get(info.type)
    if known is None:
        return QuantPlan(8, _REQUANTISED_BLOCK)
    if known.zero is not None:
        return QuantPlan(4 if info.type == "Q4_0" else 8, known.group)
    return QuantPlan(4 if exact and known.top == 15 else 8, known.group, zeros=True, offsets=exact)


def _converter(info: TensorInfo, plan: QuantPlan, *, exact: bool) -> Callable[[Bytes], _Part]:
    """What turns stored bytes of whole rows into blocks of ours."""
    known, bits = FORMATS.get(info.type), plan.bits
    if known is None:
        rounded = _requantised if bits == 8 else _rounded_to_4_bits
        return lambda raw: rounded(_floats(info, raw).reshape(-1, _REQUANTISED_BLOCK))
    block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[info.type]][1]

    def convert(raw: Bytes) -> _Part:
        with np.errstate(all="ignore"):  # what is not finite is found afterwards
            blocks = known.split(raw.reshape(-1, block_bytes))
            if known.zero is not None:
                return _symmetric(blocks, known.zero, bits)
            return _with_offsets(blocks, bits) if exact else _wide(blocks, known)

    return convert


def _symmetric(blocks: Blocks, zero: int, bits: int) -> _Part:
    """The format's own q, moved so that 0 is in the middle."""
    move = (1 << (bits - 1)) - zero
    q = blocks.q + np.uint8(move) if move else blocks.q
    return _Part(_flat(q), blocks.scale.reshape(-1))


def _with_offsets(blocks: Blocks, bits: int) -> _Part:
    """W = d·(q − z) + rest, z the whole number nearest to −m/d: exact, and the rest is small."""
    low = _lows(blocks)
    zeros = _to_bytes(-low / blocks.scale, (1 << bits) - 1)
    offsets = low + blocks.scale * zeros
    return _Part(_flat(blocks.q), blocks.scale.reshape(-1), zeros.reshape(-1), offsets.reshape(-1))


def _wide(blocks: Blocks, known: Format) -> _Part:
    """W = (d/f)·(f·q − z); blocks whose z does not fit a byte are quantised anew."""
    low, factor = _lows(blocks), 256 // (known.top + 1)
    exact_zeros = np.where(low == 0, 0, -low * factor / blocks.scale)
    zeros = _to_bytes(exact_zeros, 255)
    q, scales = blocks.q * np.uint8(factor), blocks.scale * np.float32(1 / factor)
    misfit = ~(np.abs(exact_zeros - zeros) <= 0.5)
    if misfit.any():
        weights = blocks.scale[misfit][:, None] * blocks.q[misfit] + low[misfit][:, None]
        q[misfit], scales[misfit], zeros[misfit] = _over_range(weights, 255)
    return _Part(_flat(q), scales.reshape(-1), zeros.reshape(-1))


def _over_range(weights: Floats, top: int) -> tuple[Bytes, Floats, Bytes]:
    """Q up to `top`, scale and zero point of blocks [n, block] over their range, widened so that it holds 0."""
    low = np.minimum(weights.min(axis=1), 0)
    step = (np.maximum(weights.max(axis=1), 0) - low) / np.float32(top)
    inverse = _inverse(step)
    zeros = _to_bytes(-low * inverse, top)
    return _to_bytes(weights * inverse[:, None] + zeros[:, None], top), step, zeros


def _rounded_to_4_bits(weights: Floats) -> _Part:
    """4-bit blocks [n, block] with zero points."""
    return _Part(*_over_range(weights, 15))


def _requantised(weights: Floats) -> _Part:
    """8-bit symmetric blocks [n, block] of any weights."""
    scales = (np.abs(weights).max(axis=1) / 127).astype(np.float32, copy=False)
    return _Part(_to_bytes(weights * _inverse(scales)[:, None] + 128, 255), scales)


def _inverse(steps: Floats) -> Floats:
    """1 / step; 0 for steps so small that the inverse would be infinite: their weights become 0."""
    return np.divide(1, steps, out=np.zeros_like(steps), where=steps > np.finfo(np.float32).tiny)


def _to_bytes(values: Floats, top: int) -> Bytes:
    """Rounded to whole numbers within 0 … top; what is not a number becomes 0."""
    whole: Floats = np.nan_to_num(np.clip(np.rint(values), 0, top))
    return whole.astype(np.uint8)


def _lows(blocks: Blocks) -> Floats:
    assert blocks.low is not None, "a format without minima"
    return blocks.low


def _flat(q: Bytes) -> Bytes:
    return q.reshape(-1, q.shape[-1])


def _allocate(rows: int, columns: int, plan: QuantPlan) -> QuantMatrix:
    blocks = columns // plan.block
    return QuantMatrix(
        rows=rows,
        columns=columns,
        bits=plan.bits,
        block=plan.block,
        packed=np.empty((rows, blocks, plan.block * plan.bits // 8), np.uint8),
        scales=np.empty((rows, blocks), np.float32),
        zeros=np.empty((rows, -(-blocks * plan.bits // 8)), np.uint8) if plan.zeros else None,
        offsets=np.empty((rows, blocks), np.float32) if plan.offsets else None,
    )


def _store(matrix: QuantMatrix, rows: range, part: _Part) -> None:
    """Put converted blocks into their rows."""
    at = slice(rows.start, rows.stop)
    packed = pack_nibbles(part.q) if matrix.bits == 4 else part.q
    matrix.packed[at] = packed.reshape(matrix.packed[at].shape)
    matrix.scales[at] = part.scales.reshape(matrix.scales[at].shape)
    if matrix.zeros is not None and part.zeros is not None:
        zeros = part.zeros.reshape(len(rows), -1)
        matrix.zeros[at] = pack_nibbles(zeros) if matrix.bits == 4 else zeros
    if matrix.offsets is not None and part.offsets is not None:
        matrix.offsets[at] = part.offsets.reshape(matrix.offsets[at].shape)


def _floats(info: TensorInfo, raw: Bytes) -> Floats:
    """Whole rows of any type as float32 [rows, columns]."""
    if not is_supported(info.type):
        raise UnsupportedModel(f"tensor '{info.name}' is of type {info.type}, which nothing converts")
    kind = GGMLQuantizationType[info.type]
    try:
        with np.errstate(all="ignore"):
            weights: npt.NDArray[np.float32] = gguf.quants.dequantize(raw.reshape(-1, _row_bytes(info)), kind)
    except NotImplementedError:
        raise UnsupportedModel(
            f"tensor '{info.name}' is of type {info.type}, which this version of the gguf package does not convert"
        ) from None
    if not np.isfinite(weights).all():
        raise MalformedModel(f"tensor '{info.name}' of type {info.type} holds weights that are not finite")
    return weights.reshape(-1, info.shape[-1])


def _check(info: TensorInfo, raw: Bytes) -> None:
    if raw.dtype != np.uint8 or raw.ndim != 1 or len(raw) != info.nbytes:
        raise MalformedModel(f"tensor '{info.name}' came as {raw.dtype} {raw.shape}, not as {info.nbytes} bytes")


def _row_bytes(info: TensorInfo) -> int:
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[info.type]]
    return int(info.shape[-1] // block * block_bytes)


def _chunks(info: TensorInfo) -> Iterator[range]:
    """Ranges of rows of about CHUNK_BYTES."""
    rows = int(np.prod(info.shape[:-1]))
    step = max(1, CHUNK_BYTES // _row_bytes(info))
    for begin in range(0, rows, step):
        yield range(begin, min(begin + step, rows))
