"""Folding offsets into packed weights, with packings made up here."""

import numpy as np
import pytest

from hyperlane.models.quant_layout import expand
from hyperlane.models.weights import QuantMatrix
from hyperlane.stage.folding import Folder, marked_matrix, zero_points

ROWS, BLOCKS, BLOCK = 6, 4, 32


def matrix(bits=4):
    rng = np.random.default_rng(0)
    zeros = BLOCKS // 2 if bits == 4 else BLOCKS
    return QuantMatrix(
        ROWS,
        BLOCKS * BLOCK,
        bits,
        BLOCK,
        packed=rng.integers(0, 256, (ROWS, BLOCKS, BLOCK * bits // 8)).astype(np.uint8),
        scales=rng.random((ROWS, BLOCKS)).astype(np.float32),
        zeros=rng.integers(0, 256, (ROWS, zeros)).astype(np.uint8),
        offsets=rng.standard_normal((ROWS, BLOCKS)).astype(np.float32),
    )


def pack(given):
    """Quantised bytes, then c column by column with a gap in the middle, then scales."""
    c = (-given.scales * zero_points(given)).T.reshape(-1)
    parts = [given.packed.reshape(-1), c[:7], np.zeros(3, np.float32), c[7:], given.scales.reshape(-1)]
    return np.concatenate([part.view(np.uint8) for part in parts])


def product(packed, given, x):
    """What a kernel makes of a packing: block by block, scale · Σ x·q + (Σ x) · c."""
    floats = packed[given.packed.nbytes :].view(np.float32)
    c = np.concatenate([floats[:7], floats[10 : ROWS * BLOCKS + 3]]).reshape(BLOCKS, ROWS).T
    bare = QuantMatrix(given.rows, given.columns, given.bits, given.block, given.packed, given.scales, _no_zeros(given))
    sums = x.reshape(BLOCKS, BLOCK).sum(axis=1)
    return expand(bare) @ x + c @ sums


def _no_zeros(given):
    return np.zeros_like(given.zeros)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_folded_matrix_multiplies_with_its_offsets(bits):
    given = matrix(bits)
    packed = pack(given)
    assert Folder(pack).fold(given, packed)
    x = np.random.default_rng(1).standard_normal(given.columns).astype(np.float32)
    np.testing.assert_allclose(product(packed, given, x), expand(given) @ x, rtol=1e-4, atol=1e-3)


def test_a_packing_that_holds_other_numbers_than_it_should_is_left_alone():
    given = matrix()
    packed = pack(given)
    packed[given.packed.nbytes + 1] ^= 1
    before = packed.copy()
    assert not Folder(pack).fold(given, packed)
    np.testing.assert_array_equal(packed, before)


@pytest.mark.parametrize(
    "strange",
    [
        lambda given: None,
        lambda given: given.packed.reshape(-1),
        lambda given: np.concatenate([pack(given), pack(given)]),
        lambda given: (pack(given).view(np.float32) * np.float32(0.5)).view(np.uint8),
    ],
    ids=["nothing packed", "no c", "c twice", "other c"],
)
def test_a_packing_that_is_not_understood_is_not_folded(strange):
    given = matrix()
    assert Folder(strange).places(ROWS, BLOCKS * BLOCK, 4, BLOCK) is None
    assert not Folder(strange).fold(given, pack(given))


def test_a_shape_is_looked_at_once():
    seen = []
    folder = Folder(lambda given: seen.append(given) or pack(given))
    for _ in range(3):
        assert folder.fold(matrix(), pack(matrix()))
    assert len(seen) == 1


def test_marks_are_all_different():
    marked = marked_matrix(3, 64, 4, 16)
    assert sorted((marked.scales * zero_points(marked)).reshape(-1)) == list(range(1, 13))
