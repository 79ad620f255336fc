"""Gate and up, which are held as one matrix, as two matrices of the same memory. Knows arrays and forms, no engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hyperlane.graph.forms import Forms, Offsets, packed_name, part_path, scales_name, zeros_name
from hyperlane.stage.numbers import TypedArray

GATE_UP = "/ffn/gate_up"

ALIGNMENT = 256
"""A device's kernels read values from such addresses on."""


def gates_apart(arrays: Mapping[str, TypedArray], forms: Forms) -> tuple[dict[str, TypedArray], Forms]:
    """The arrays and forms with every gate_up cut into two parts, views of the same bytes.

    Those whose halves would not begin where a device reads well, or whose offsets are a matrix apart, stay as they are.
    """
    cut, parts = dict(arrays), dict(forms)
    for path, whole in forms.items():
        if not path.endswith(GATE_UP) or len(whole) != 1 or not whole[0].bits or whole[0].offsets is Offsets.MATMUL:
            continue
        rows = whole[0].rows // 2
        held = [arrays[name] for name in _names(path) if name in arrays]
        if any(array[:rows].nbytes % ALIGNMENT for array in held):
            continue
        for first, second in zip(_names(path), _names(part_path(path, 1)), strict=True):
            if first in arrays:
                cut[first], cut[second] = arrays[first][:rows], arrays[first][rows:]
        parts[path] = (replace(whole[0], rows=rows),) * 2
    return cut, parts


def _names(path: str) -> tuple[str, ...]:
    return packed_name(path), scales_name(path), zeros_name(path)
