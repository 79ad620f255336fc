"""What a plan counts for weights as arrays is what they are when they have been read."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hyperlane.core import WeightForm
from hyperlane.graph.forms import part_forms
from hyperlane.graph.numbers import numbers_of
from hyperlane.models.layout import MatrixPart, UnitLayout
from hyperlane.models.random_blocks import random_matrix
from hyperlane.models.weights import TensorInfo
from hyperlane.stage.numbers import in_types
from hyperlane.stage.options import BlockOffsets
from hyperlane.stage.sizes import ValueBytes, unit_sizes
from hyperlane.stage.weights import TILE, few_rows_bytes, read_embedding, read_unit

TYPES = ("F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
COLUMNS = (256, 1280, 2048)
ROWS = 96


def source_of(kind: str, columns: int, rows: int = ROWS) -> SimpleNamespace:
    """Two matrices, one of another type, and a vector."""
    random = np.random.default_rng(1)
    kinds = {"one": kind, "other": "Q8_0"}
    stored = {name: random_matrix(of, rows, columns, std=0.1, random=random).reshape(-1) for name, of in kinds.items()}
    infos = {name: TensorInfo(name, (rows, columns), of, stored[name].nbytes) for name, of in kinds.items()}
    stored["norm"] = np.ones(columns, np.float32).view(np.uint8)
    infos["norm"] = TensorInfo("norm", (columns,), "F32", 4 * columns)
    return SimpleNamespace(info=infos.get, read=stored.__getitem__, names=lambda: list(infos))


def unit_of(name: str, weights: WeightForm, *tensors: str) -> UnitLayout:
    return UnitLayout(
        name, (MatrixPart(name, tensors, (0,) * len(tensors)),), {f"{name}/norm": "norm"}, weights=weights
    )


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("offsets", [BlockOffsets.FINE, BlockOffsets.EXACT])
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("kind", TYPES)
def test_a_layer_counts_what_it_is_read_to(kind, columns, offsets, family):
    source, numbers = source_of(kind, columns), numbers_of(family, half=True, half_cache=True)
    values = ValueBytes(numbers.stream_dtype.itemsize, numbers.matrix_dtype.itemsize)
    for weights in WeightForm if kind == "F16" else (WeightForm.FP16,):
        unit = unit_of("layer.0/attn/qkv", weights, "one", "other", "one")
        read = read_unit(source, unit, offsets)
        sizes = unit_sizes(source, unit, offsets, values)
        assert sizes.all == sum(array.nbytes for array in in_types(read.arrays, numbers).values())
        forms = [form for _, form in part_forms(read.forms) if form.bits]
        assert sizes.tiles == all(form.packed_columns % TILE == 0 for form in forms)
        assert not sizes.tiles or sizes.few_rows == few_rows_bytes(in_types(read.arrays, numbers), read.forms)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("offsets", [BlockOffsets.FINE, BlockOffsets.EXACT])
@pytest.mark.parametrize("kind", TYPES)
def test_a_table_counts_what_it_is_read_to(kind, offsets, family):
    source, numbers = source_of(kind, 256), numbers_of(family, half=True, half_cache=True)
    values = ValueBytes(numbers.stream_dtype.itemsize, numbers.matrix_dtype.itemsize)
    unit = UnitLayout("embedding", (MatrixPart("embedding", ("one",), (0,)),), {})
    read = read_embedding(source, unit, offsets)
    sizes = unit_sizes(source, unit, offsets, values)
    assert sizes.all == sum(array.nbytes for array in in_types(read.arrays, numbers).values())
    assert sizes.few_rows == sizes.widest == 0


def test_matrices_of_one_form_that_are_joined_are_as_wide_together():
    source = source_of("Q8_0", 256)
    unit = unit_of("layer.0/ffn/gate_up", WeightForm.FP16, "one", "other")
    sizes = unit_sizes(source, unit, BlockOffsets.FINE, ValueBytes(2, 2))
    assert sizes.widest == 2 * ROWS * 256
    assert sizes.few_rows == 2 * ROWS * (256 + 2 * 256 // 32)
