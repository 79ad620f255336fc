"""How many bytes a packed hidden state has, and what they mean: golden bytes, read by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hyperlane.core import ElementType, Precision
from hyperlane.errors import ConfigError
from hyperlane.testing.packed import GOLDEN_BLOCKS, GOLDEN_VALUES, point_table, unpack_block, unpack_token
from hyperlane.wire.packing import BLOCK, BLOCK_BYTES, token_bytes

NOTHING = bytes(32)


@pytest.mark.parametrize(
    ("precision", "element", "expected"),
    [
        (Precision.RAW, ElementType.F32, 2304),
        (Precision.RAW, ElementType.F16, 1152),
        (Precision.F32, ElementType.F16, 2304),
        (Precision.INT8, ElementType.F32, 585),
        (Precision.INT8, ElementType.F16, 585),
        (Precision.INT4, ElementType.F32, 342),
    ],
)
def test_a_token_of_smollm2_has_so_many_bytes(precision, element, expected):
    assert token_bytes(576, precision, element) == expected


def test_int4_takes_at_most_four_and_three_quarter_bits_a_value():
    assert 8 * BLOCK_BYTES[Precision.INT4] / BLOCK <= 4.75


def test_values_that_do_not_fill_blocks_are_refused_with_what_to_do():
    assert token_bytes(100, Precision.RAW, ElementType.F32) == 400
    with pytest.raises(ConfigError, match="blocks of 64; use raw"):
        token_bytes(100, Precision.INT4, ElementType.F32)


def test_equal_rotated_values_are_one_value_eight_times_as_large():
    """Scale 102 is 1; every octet 129 is one step."""
    values = unpack_block(bytes([102]) + bytes([129]) * 64, Precision.INT8)
    np.testing.assert_allclose(values, [8.0] + [0.0] * 63, atol=1e-12)


def test_a_scale_is_six_codes_an_octave():
    small, large = (unpack_block(bytes([code]) + bytes([129]) * 64, Precision.INT8)[0] for code in (102, 108))
    assert large == 2 * small


def int4_block(held: dict[int, int]) -> bytes:
    """A block of scale 1 that holds nothing but these octets."""
    data = bytearray([102, 128]) + bytearray(36)
    for octet, value in held.items():
        data[octet] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("held", "place"),
    [({}, 0), ({34: 81}, 1), ({35: 2 * 81}, 6), ({34: 2 * 81, 35: 2 * 81, 37: 2 * 81}, 62), ({36: 81}, 9)],
)
def test_the_value_apart_stands_in_its_place_in_half_scales(held, place):
    found = unpack_block(int4_block({**held, 1: 128 + 25}), Precision.INT4)
    np.testing.assert_allclose(found, np.eye(BLOCK)[place] * 12.5, atol=1e-12)


def test_a_place_that_no_block_has_holds_nothing():
    assert not unpack_block(int4_block({1: 200, 34: 81, 35: 81, 36: 2 * 81, 37: 2 * 81}), Precision.INT4).any()


@pytest.mark.parametrize(("precision", "tolerance"), [(Precision.INT8, 0.2), (Precision.INT4, 0.3)])
def test_the_golden_blocks_are_about_their_values(precision, tolerance):
    values = np.zeros(BLOCK)
    values[: len(GOLDEN_VALUES)] = GOLDEN_VALUES
    found = unpack_block(bytes.fromhex(GOLDEN_BLOCKS[precision]), precision)
    np.testing.assert_allclose(found, values, atol=tolerance)


@pytest.mark.parametrize(
    ("held", "quad", "number"),
    [
        ({2: 7}, 0, 7),
        ({17: 7, 33: 2}, 15, 519),
        ({3: 0x38, 19: 0xF5, 34: 2 * 3}, 1, 193848),
        ({34: 2 + 3 + 2 * 27}, 3, 131072),
        ({37: 2 * 27}, 15, 131072),
        ({36: 1}, 8, 65536),
    ],
)
def test_a_number_is_held_where_the_page_says(held, quad, number):
    turned = unpack_block(int4_block(held), Precision.INT4)
    signs = np.array([[-1.0 if (i & j).bit_count() % 2 else 1.0 for j in range(BLOCK)] for i in range(BLOCK)])
    np.testing.assert_allclose((signs @ turned / 8)[4 * quad : 4 * quad + 4], point_table()[number], atol=1e-9)


def test_numbers_without_a_point_are_nothing():
    assert not unpack_block(int4_block({2: 0x39, 18: 0xF5, 34: 2}), Precision.INT4).any()


def test_points_are_numbered_from_the_middle_and_come_with_their_opposites():
    points = np.array(point_table())
    assert len(points) == 193849
    assert not points[0].any()
    assert np.diff(np.square(points).sum(-1)).min() > -1e-9
    np.testing.assert_allclose(points.sum(0), 0, atol=1e-9)


def test_a_code_of_255_makes_a_token_that_is_not_a_number():
    block = bytes([102]) + bytes([128]) * 64
    token = unpack_token(block + bytes([255]) + block[1:], Precision.INT8)
    assert np.isnan(token).tolist() == [False] * 64 + [True] * 64
