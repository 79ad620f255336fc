"""How a matrix of a stage is held: what a graph must know of a weight to use it. No values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Offsets(enum.StrEnum):
    """What becomes of the part of a block's offset that no integer zero point expresses (Q4_1, Q4_K, …).

    NONE: there is none, or the packed weights hold it (`stage.folding`). COLUMNS: further quantised columns of the
    matrix, whose inputs are the sums of x over its blocks; `levels` times, each for what the ones before leave.
    MATMUL: a float32 matrix [columns / block, rows] that multiplies those sums: exact.
    """

    NONE = "none"
    COLUMNS = "columns"
    MATMUL = "matmul"


@dataclass(frozen=True, slots=True)
class MatrixForm:
    """One matrix [rows, columns]. `bits` 0: float32 [columns, rows] for a plain matmul, else MatMulNBits."""

    rows: int
    columns: int
    bits: int = 0
    block: int = 0
    zeros: bool = False
    offsets: Offsets = Offsets.NONE
    levels: int = 1

    @property
    def sums(self) -> int:
        """How many block sums of x the matrix multiplies besides x."""
        return 0 if self.offsets is Offsets.NONE else self.columns // self.block

    @property
    def packed_columns(self) -> int:
        """Columns of the quantised matrix: those of the weights, and of the block sums where they are columns."""
        return self.columns + (self.levels * self.sums if self.offsets is Offsets.COLUMNS else 0)


Forms = Mapping[str, tuple[MatrixForm, ...]]
"""By graph path of a matmul: the forms of its parts, whose outputs are concatenated."""


def part_path(path: str, part: int) -> str:
    """The graph path of one part of a matmul: `layer.3/attn/qkv`, then `layer.3/attn/qkv.1` and so on."""
    return path if part == 0 else f"{path}.{part}"


def packed_name(path: str) -> str:
    """Initialiser of quantised values, uint8 [rows, blocks, block · bits / 8]."""
    return f"{path}/packed"


def scales_name(path: str) -> str:
    """Initialiser of scales, float32 [rows, blocks]."""
    return f"{path}/scales"


def zeros_name(path: str) -> str:
    """Initialiser of zero points, uint8 [rows, ceil(blocks · bits / 8)]."""
    return f"{path}/zeros"


def offsets_name(path: str) -> str:
    """Initialiser of exact offsets, float32 [columns / block, rows]."""
    return f"{path}/offsets"


def weight_names(path: str, form: MatrixForm) -> list[str]:
    """The initialisers that one operator multiplies by, in its order."""
    if form.bits == 0:
        return [values_name(path)]
    return [packed_name(path), scales_name(path), *([zeros_name(path)] if form.zeros else [])]


def part_forms(forms: Forms) -> list[tuple[str, MatrixForm]]:
    """The path and form of every part of every matmul."""
    return [(part_path(path, index), form) for path, parts in forms.items() for index, form in enumerate(parts)]


def values_name(path: str) -> str:
    """Initialiser of plain float32 values: a vector, or a matrix [columns, rows]."""
    return f"{path}/values"
