import numpy as np
import pytest

from hyperlane.models.quant import matrix_form
from hyperlane.models.quant_layout import (
    concat_rows,
    expand,
    pack_nibbles,
    split_blocks,
    take_rows,
    unpack_nibbles,
    unpermute_rows,
    widen,
)
from hyperlane.models.random_blocks import random_matrix
from hyperlane.models.weights import QuantMatrix, TensorInfo


def converted(kind: str, rows: int, *, exact: bool = True, columns: int = 256, seed: int = 0) -> QuantMatrix:
    raw = random_matrix(kind, rows, columns, std=0.05, random=np.random.default_rng(seed)).reshape(-1)
    return matrix_form(TensorInfo("w", (rows, columns), kind, raw.nbytes), raw, exact=exact)


def test_a_matrix_means_scale_times_q_minus_zero_plus_offset():
    matrix = QuantMatrix(
        rows=1,
        columns=32,
        bits=4,
        block=16,
        packed=np.array([[[0x10, 0x32, *[0x88] * 6], [0xFE] * 8]], np.uint8),
        scales=np.array([[0.5, 2.0]], np.float32),
        zeros=np.array([[0xE8]], np.uint8),
        offsets=np.array([[0.25, -1.0]], np.float32),
    )
    weights = expand(matrix)
    assert weights.shape == (1, 32)
    assert weights[0, :5].tolist() == [-3.75, -3.25, -2.75, -2.25, 0.25]
    assert weights[0, 16:18].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_nibbles_pack_low_first_and_unpack(count: int):
    values = np.random.default_rng(0).integers(0, 16, (3, count), dtype=np.uint8)
    packed = pack_nibbles(values)
    assert packed.shape == (3, (count + 1) // 2)
    assert packed[0, 0] & 15 == values[0, 0]
    assert np.array_equal(unpack_nibbles(packed, count), values)


PARTS = {
    "alike": [("Q4_0", True), ("Q4_0", True)],
    "gemma q, k, v": [("Q5_0", True), ("Q5_0", True), ("Q8_0", True)],
    "4 and 8 bit": [("Q4_0", True), ("Q8_0", True)],
    "blocks of 32 and 16": [("Q8_0", True), ("Q6_K", True)],
    "4 bit of 32 and 8 bit of 16": [("Q4_0", True), ("Q6_K", True)],
    "offsets and none": [("Q4_K", True), ("Q6_K", True), ("Q4_0", True)],
    "4-bit zeros and none": [("Q4_1", True), ("Q4_0", True)],
    "wide and exact": [("Q4_K", False), ("Q5_K", True), ("Q8_0", True)],
    "one": [("Q4_1", True)],
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("columns", [256, 768])
def test_joined_rows_mean_exactly_what_their_parts_mean(name: str, columns: int):
    parts = [
        converted(kind, rows, exact=exact, columns=columns, seed=rows)
        for rows, (kind, exact) in enumerate(PARTS[name], start=3)
    ]
    joined = concat_rows(parts)
    blocks = columns // joined.block
    assert joined.rows == sum(part.rows for part in parts)
    assert joined.packed.shape == (joined.rows, blocks, joined.block * joined.bits // 8)
    assert joined.scales.shape == (joined.rows, blocks)
    assert joined.zeros is None or joined.zeros.shape == (joined.rows, -(-blocks * joined.bits // 8))
    assert np.array_equal(expand(joined), np.concatenate([expand(part) for part in parts]))


def test_an_odd_number_of_4_bit_blocks_joins():
    parts = [converted("Q4_1", 2, columns=96), converted("Q4_0", 3, columns=96)]
    joined = concat_rows(parts)
    assert joined.zeros.shape == (5, 2)
    assert np.array_equal(expand(joined), np.concatenate([expand(part) for part in parts]))


def test_matrices_of_other_columns_do_not_join():
    with pytest.raises(ValueError, match=r"\[256, 512\] columns"):
        concat_rows([converted("Q4_0", 2), converted("Q4_0", 2, columns=512)])
    with pytest.raises(ValueError, match="columns"):
        concat_rows([])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_widening_is_exact_and_leaves_no_zero_points(kind: str):
    matrix = converted(kind, 4)
    assert widen(matrix).bits == 8
    assert widen(matrix).zeros is None
    assert np.array_equal(expand(widen(matrix)), expand(matrix))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q5_1"])
def test_splitting_blocks_is_exact(kind: str):
    matrix = converted(kind, 4)
    assert split_blocks(matrix, 16).block == 16
    assert np.array_equal(expand(split_blocks(matrix, 16)), expand(matrix))


def file_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """How converters to GGUF store a llama's q and k: the halves of each head interleaved."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def test_unpermuting_undoes_the_files_order():
    original = np.random.default_rng(0).random((48, 8), dtype=np.float32)
    assert np.array_equal(unpermute_rows(file_order(original, 3), 3), original)
    head = unpermute_rows(np.arange(8, dtype=np.float32).reshape(8, 1), 1)
    assert head[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q6_K"])
def test_unpermuting_a_quantised_matrix_moves_whole_rows(kind: str):
    matrix = converted(kind, 24)
    assert np.array_equal(expand(unpermute_rows(matrix, 2)), unpermute_rows(expand(matrix), 2))


def test_rotation_of_pairs_becomes_rotation_of_halves():
    random = np.random.default_rng(0)
    heads, half, hidden = 2, 4, 8
    stored = random.standard_normal((heads * 2 * half, hidden)).astype(np.float32)
    angle = random.random(half)
    x = random.standard_normal(hidden)
    pairs = (stored @ x).reshape(heads, half, 2)
    turned_first = pairs[..., 0] * np.cos(angle) - pairs[..., 1] * np.sin(angle)
    turned_second = pairs[..., 1] * np.cos(angle) + pairs[..., 0] * np.sin(angle)
    first, second = (unpermute_rows(stored, heads) @ x).reshape(heads, 2, half).swapaxes(0, 1)
    assert np.allclose(first * np.cos(angle) - second * np.sin(angle), turned_first)
    assert np.allclose(second * np.cos(angle) + first * np.sin(angle), turned_second)


def test_rows_that_are_not_whole_heads_are_refused():
    with pytest.raises(ValueError, match="10 rows"):
        unpermute_rows(np.zeros((10, 2), np.float32), 3)


def test_taking_rows_leaves_the_original_alone():
    matrix = converted("Q4_1", 3)
    before = expand(matrix)
    taken = take_rows(matrix, np.array([2, 0]))
    assert taken.rows == 2
    taken.packed[:] = 0
    assert np.array_equal(expand(matrix), before)
