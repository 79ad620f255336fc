import tracemalloc

import gguf.quants
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hyperlane.core import WeightForm
from hyperlane.errors import MalformedModel, UnsupportedModel
from hyperlane.models.quant import OTHER_TYPES, PLAIN_TYPES, dequantize, form_bytes, is_supported, matrix_form
from hyperlane.models.quant_blocks import FORMATS
from hyperlane.models.quant_layout import expand
from hyperlane.models.random_blocks import random_matrix
from hyperlane.models.weights import QuantMatrix, TensorInfo

SYMMETRIC = ("Q4_0", "Q5_0", "Q8_0", "Q3_K", "Q6_K")
WITH_MINIMA = ("Q4_1", "Q5_1", "Q4_K", "Q5_K")
STEPS_OF_WIDE = {"Q4_1": 32, "Q4_K": 32, "Q5_1": 16, "Q5_K": 16}


def stored(kind: str, rows: int = 24, columns: int = 512, std: float = 0.05) -> tuple[TensorInfo, np.ndarray]:
    raw = random_matrix(kind, rows, columns, std=std, random=np.random.default_rng(7)).reshape(-1)
    return TensorInfo("w", (rows, columns), kind, raw.nbytes), raw


def reference(info: TensorInfo, raw: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(raw.reshape(info.shape[0], -1), GGMLQuantizationType[info.type])


def size(matrix: QuantMatrix | np.ndarray) -> int:
    if isinstance(matrix, np.ndarray):
        return matrix.nbytes
    return sum(a.nbytes for a in (matrix.packed, matrix.scales, matrix.zeros, matrix.offsets) if a is not None)


def groups(weights: np.ndarray, block: int = 32) -> np.ndarray:
    return weights.reshape(-1, block)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", SYMMETRIC)
def test_a_symmetric_type_converts_exactly(kind: str, exact: bool):
    info, raw = stored(kind)
    matrix = matrix_form(info, raw, exact=exact)
    assert (matrix.zeros, matrix.offsets) == (None, None)
    assert matrix.bits == (4 if kind == "Q4_0" else 8)
    assert matrix.block == (16 if kind in {"Q3_K", "Q6_K"} else 32)
    assert np.array_equal(expand(matrix), reference(info, raw))


@pytest.mark.parametrize("kind", WITH_MINIMA)
def test_the_exact_form_of_a_type_with_minima_is_its_dequantisation(kind: str):
    info, raw = stored(kind)
    matrix = matrix_form(info, raw, exact=True)
    assert (matrix.bits, matrix.block) == (4 if kind in {"Q4_1", "Q4_K"} else 8, 32)
    wanted = reference(info, raw)
    tolerance = 1e-6 * np.abs(groups(wanted)).max(axis=1, keepdims=True)
    assert (np.abs(groups(expand(matrix)) - groups(wanted)) <= tolerance).all()


@pytest.mark.parametrize("kind", WITH_MINIMA)
def test_the_offsets_of_the_exact_form_are_at_most_half_a_step_where_zero_is_in_range(kind: str):
    info, raw = stored(kind)
    matrix = matrix_form(info, raw, exact=True)
    wanted = groups(reference(info, raw))
    inside = (wanted.min(axis=1) <= 0) & (wanted.max(axis=1) >= 0)
    assert inside.mean() > 0.3
    assert (np.abs(matrix.offsets).reshape(-1) <= matrix.scales.reshape(-1) * 0.501)[inside].all()


@pytest.mark.parametrize("kind", WITH_MINIMA)
def test_the_wide_form_is_off_by_a_small_part_of_a_step_where_zero_is_in_range(kind: str):
    info, raw = stored(kind)
    matrix = matrix_form(info, raw, exact=False)
    assert (matrix.bits, matrix.block, matrix.offsets) == (8, 32, None)
    wanted, found = groups(reference(info, raw)), groups(expand(matrix))
    step = matrix_form(info, raw, exact=True).scales.reshape(-1, 1)
    inside = (wanted.min(axis=1) <= 0) & (wanted.max(axis=1) >= 0)
    error = np.abs(found - wanted)
    assert (error <= step / STEPS_OF_WIDE[kind] * 1.001 + 1e-9)[inside].all()
    # Within a block the error is one offset: nothing is lost of the differences between weights.
    spread = error.max(axis=1) - error.min(axis=1)
    assert (spread <= 1e-6 * np.abs(wanted).max(axis=1))[inside].all()


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1"])
@pytest.mark.parametrize("low", [0.25, 3.0, -9.0])
def test_a_block_far_from_zero_is_quantised_anew_over_its_range(kind: str, low: float):
    rows, columns = 4, 64
    values = (low + np.random.default_rng(1).random((rows, columns))).astype(np.float32)
    raw = gguf.quants.quantize(values, GGMLQuantizationType[kind]).reshape(-1)
    info = TensorInfo("w", (rows, columns), kind, raw.nbytes)
    wanted = groups(reference(info, raw))
    found = groups(expand(matrix_form(info, raw, exact=False)))
    reach = np.maximum(wanted.max(axis=1), 0) - np.minimum(wanted.min(axis=1), 0)
    assert (np.abs(found - wanted) <= reach[:, None] / 510 * 1.001).all()
    assert np.allclose(groups(expand(matrix_form(info, raw, exact=True))), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_constant_blocks_convert_in_every_form(kind: str, value: float):
    values = np.full((2, 32), value, np.float32)
    raw = gguf.quants.quantize(values, GGMLQuantizationType[kind]).reshape(-1)
    info = TensorInfo("w", (2, 32), kind, raw.nbytes)
    for exact in (True, False):
        assert np.allclose(expand(matrix_form(info, raw, exact=exact)), reference(info, raw), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", sorted(PLAIN_TYPES))
def test_a_plain_type_stays_float32(kind: str):
    info, raw = stored(kind)
    matrix = matrix_form(info, raw, exact=True)
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix, reference(info, raw))


@pytest.mark.parametrize("kind", sorted(OTHER_TYPES - {"IQ1_M"}))
def test_any_other_type_goes_to_8_bits_with_an_error_below_half_a_step(kind: str):
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    raw = np.random.default_rng(3).integers(0, 100, 8 * 512 // block * block_bytes, dtype=np.uint8)
    info = TensorInfo("w", (8, 512), kind, raw.nbytes)
    wanted = groups(reference(info, raw))
    found = groups(expand(matrix_form(info, raw, exact=True)))
    assert (np.abs(found - wanted) <= np.abs(wanted).max(axis=1, keepdims=True) / 254 * 1.001 + 1e-36).all()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", sorted(FORMATS.keys() | PLAIN_TYPES | {"Q2_K", "IQ4_NL"}))
def test_form_bytes_are_what_the_form_takes(kind: str, exact: bool):
    if kind == "IQ4_NL":
        raw = np.zeros(3 * 512 // 32 * 18, np.uint8)
        info = TensorInfo("w", (3, 512), kind, raw.nbytes)
    else:
        info, raw = stored(kind, rows=3)
    assert form_bytes(info, exact=exact) == size(matrix_form(info, raw, exact=exact))


@pytest.mark.parametrize("kind", sorted(PLAIN_TYPES))
@pytest.mark.parametrize(("weights", "bits", "share"), [("int8", 8, 1 / 254), ("int4", 4, 1 / 15)])
def test_weights_in_full_are_rounded_to_the_nearest_step_of_their_block(kind, weights, bits, share):
    info, raw = stored(kind, rows=3)
    form = WeightForm(weights)
    matrix = matrix_form(info, raw, exact=True, weights=form)
    assert (matrix.bits, matrix.block, matrix.offsets) == (bits, 32, None)
    assert size(matrix) == form_bytes(info, exact=True, weights=form)
    wanted = dequantize(info, raw).reshape(-1, 32)
    reach = np.maximum(wanted.max(axis=1), 0) - np.minimum(wanted.min(axis=1), 0)
    largest = np.abs(wanted).max(axis=1) if bits == 8 else reach
    assert (np.abs(expand(matrix).reshape(-1, 32) - wanted).max(axis=1) <= 1.001 * share * largest).all()


def test_zeros_and_blocks_of_one_sign_are_rounded_without_a_fault():
    weights = np.concatenate([np.zeros(32), np.full(32, 0.75), -np.arange(1.0, 33.0)]).astype("<f4")
    info = TensorInfo("w", (1, 96), "F32", weights.nbytes)
    for form, error in ((WeightForm.INT8, 32 / 254), (WeightForm.INT4, 32 / 30)):
        found = expand(matrix_form(info, weights.view(np.uint8), exact=True, weights=form))[0]
        assert (found[:32] == 0).all()
        assert np.allclose(found[32:64], 0.75)
        assert np.abs(found[64:] - weights[64:]).max() <= 1.001 * error


def test_columns_that_are_no_whole_blocks_stay_as_they_are():
    info = TensorInfo("w", (2, 40), "F32", 320)
    matrix = matrix_form(info, np.zeros(320, np.uint8), exact=True, weights=WeightForm.INT4)
    assert not isinstance(matrix, QuantMatrix)
    assert form_bytes(info, exact=True, weights=WeightForm.INT4) == matrix.nbytes


def test_an_odd_number_of_blocks_pads_its_zero_points():
    info, raw = stored("Q4_1", rows=5, columns=96)
    matrix = matrix_form(info, raw, exact=True)
    assert matrix.zeros.shape == (5, 2)
    assert size(matrix) == form_bytes(info, exact=True)
    assert np.allclose(expand(matrix), reference(info, raw), atol=1e-7)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q6_K", "F16", "Q2_K"])
def test_chunks_of_rows_give_the_same_as_one(kind: str, monkeypatch: pytest.MonkeyPatch):
    info, raw = stored(kind, rows=23)
    whole = matrix_form(info, raw, exact=True)
    monkeypatch.setattr("hyperlane.models.quant.CHUNK_BYTES", 1000)
    chunked = matrix_form(info, raw, exact=True)
    if isinstance(whole, QuantMatrix):
        whole, chunked = expand(whole), expand(chunked)
    assert np.array_equal(whole, chunked)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_conversion_needs_little_memory_besides_its_result(kind: str):
    info, raw = stored(kind, rows=4096)
    for exact in (True, False):
        tracemalloc.start()
        matrix = matrix_form(info, raw, exact=exact)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak - size(matrix) < 8 << 20


def test_dequantised_weights_have_the_tensors_shape():
    info, raw = stored("Q4_K")
    assert np.array_equal(dequantize(info, raw), reference(info, raw))
    vector = np.arange(5, dtype=np.float32)
    assert np.array_equal(dequantize(TensorInfo("v", (5,), "F32", 20), vector.view(np.uint8)), vector)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", sorted(FORMATS.keys() | {"Q2_K", "F32", "F16", "BF16"}))
def test_scales_that_are_not_finite_are_malformed(kind: str, exact: bool):
    info, raw = stored(kind)
    raw = raw.copy()
    raw[:] = 0xFF  # every float16, bfloat16 and float32 is then no number
    with pytest.raises(MalformedModel, match=r"'w' of type .* not finite"):
        matrix_form(info, raw, exact=exact)


def test_bytes_that_do_not_match_the_shape_are_malformed():
    info, raw = stored("Q4_0")
    for wrong in (raw[:-1], raw.view(np.int8), raw.reshape(2, -1)):
        with pytest.raises(MalformedModel, match="tensor 'w' came as"):
            matrix_form(info, wrong, exact=True)


def test_a_quantised_tensor_that_is_no_matrix_is_malformed():
    _, raw = stored("Q8_0", rows=4, columns=64)
    with pytest.raises(MalformedModel, match="not a matrix"):
        matrix_form(TensorInfo("w", (2, 2, 64), "Q8_0", raw.nbytes), raw, exact=True)


def test_a_type_that_nothing_converts_is_unsupported():
    info = TensorInfo("w", (2, 4), "I32", 32)
    assert not is_supported("I32")
    with pytest.raises(UnsupportedModel, match="I32"):
        matrix_form(info, np.zeros(32, np.uint8), exact=True)
