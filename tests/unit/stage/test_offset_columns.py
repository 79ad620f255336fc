"""Offsets of weights as further quantised columns, without an engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hyperlane.models.quant_layout import expand, pack_nibbles
from hyperlane.models.weights import QuantMatrix
from hyperlane.stage.weights import FINE_LEVELS, centred, whole_blocks_of_sums, with_offset_columns

ROWS, COLUMNS, BLOCK = 8, 1024, 32


def matrix(bits, *, zeros_up_to):
    random = np.random.default_rng(bits)
    blocks, top = COLUMNS // BLOCK, 15 if bits == 4 else 31
    q = random.integers(0, top + 1, (ROWS, blocks, BLOCK)).astype(np.uint8)
    zeros = random.integers(0, zeros_up_to, (ROWS, blocks)).astype(np.uint8)
    scales = random.uniform(0.001, 0.01, (ROWS, blocks)).astype(np.float32)
    offsets = (scales * random.uniform(-0.5, 0.5, scales.shape)).astype(np.float32)
    packed, zeros = (pack_nibbles(q), pack_nibbles(zeros)) if bits == 4 else (q, zeros)
    return QuantMatrix(ROWS, COLUMNS, bits, BLOCK, packed, scales, zeros, offsets)


def meant(columns, levels):
    """The weights that a matrix with offset columns means when x and its block sums go in."""
    weights, blocks = expand(columns), COLUMNS // BLOCK
    sums = sum(weights[:, COLUMNS + i * blocks : COLUMNS + (i + 1) * blocks] for i in range(levels))
    return weights[:, :COLUMNS] + np.repeat(sums, BLOCK, axis=1)


@pytest.mark.parametrize(("bits", "zeros_up_to"), [(4, 16), (8, 32), (8, 256)])
def test_a_centred_matrix_has_no_zero_points_and_the_same_weights(bits, zeros_up_to):
    before = matrix(bits, zeros_up_to=zeros_up_to)
    after = centred(before)
    assert after.zeros is None
    np.testing.assert_allclose(expand(after), expand(before), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("bits", "zeros_up_to"), [(4, 16), (8, 32), (8, 256)])
def test_fine_offsets_are_as_exact_as_float16(bits, zeros_up_to):
    before, levels = centred(matrix(bits, zeros_up_to=zeros_up_to)), FINE_LEVELS[bits]
    largest = np.abs(before.offsets).max()
    error = np.abs(meant(with_offset_columns(before, levels), levels) - expand(before)).max()
    assert error <= largest / 340
    assert np.abs(meant(with_offset_columns(before), 1) - expand(before)).max() > error


@pytest.mark.parametrize(
    ("columns", "levels", "whole"), [(2048, 3, True), (1024, 3, False), (1024, 2, True), (512, 2, False)]
)
def test_columns_of_sums_fill_whole_blocks_and_whole_tiles(columns, levels, whole):
    assert whole_blocks_of_sums(replace(matrix(4, zeros_up_to=16), columns=columns), levels) is whole
