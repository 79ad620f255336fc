"""How many bytes a packed hidden state has, and what they mean: golden bytes, read by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hyperlane.core import ElementType, Precision
from hyperlane.errors import ConfigError
from hyperlane.testing.packed import GOLDEN_BLOCKS, GOLDEN_VALUES, level, unpack_block, unpack_token
from hyperlane.wire.packing import BLOCK, BLOCK_BYTES, token_bytes

NOTHING = bytes(35)


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


def test_the_value_apart_stands_in_its_place_in_steps_of_one_and_a_half_scales():
    held = unpack_block(bytes([102, 128, 0]) + NOTHING, Precision.INT4)
    apart = unpack_block(bytes([102, 128 + 25, 17]) + NOTHING, Precision.INT4)
    np.testing.assert_allclose(apart - held, np.eye(BLOCK)[17] * 37.5, atol=1e-12)


@pytest.mark.parametrize(("precision", "tolerance"), [(Precision.INT8, 0.2), (Precision.INT4, 0.3)])
def test_the_golden_blocks_are_about_their_values(precision, tolerance):
    values = np.zeros(BLOCK)
    values[: len(GOLDEN_VALUES)] = GOLDEN_VALUES
    found = unpack_block(bytes.fromhex(GOLDEN_BLOCKS[precision]), precision)
    np.testing.assert_allclose(found, values, atol=tolerance)


@pytest.mark.parametrize(
    ("held", "place", "code"),
    [
        ({3: 7}, 0, 7),
        ({3: 147}, 1, 7),
        ({3: 0x0F, 16: 0x0C}, 2, 7),
        ({3: 0x3B, 16: 0xFD}, 3, 7),
        ({3: 0xD4, 16: 0x59, 29: 0x0B, 35: 0x03}, 4, 20),
        ({14: 7}, 55, 7),
        ({14: 0xD4, 27: 0x59, 34: 0xB0, 37: 0xC0}, 59, 20),
        ({15: 0x84, 28: 0xD3, 2: 0x80}, 63, 20),
    ],
)
def test_a_level_is_held_where_the_page_says(held, place, code):
    """Five codes make a number base 21: its low octet, its middle one, a nibble and two bits."""
    data = bytearray([102, 128, 0]) + bytearray(NOTHING)
    for octet, value in held.items():
        data[octet] = value
    turned = unpack_block(bytes(data), Precision.INT4)
    signs = np.array([[-1.0 if (i & j).bit_count() % 2 else 1.0 for j in range(BLOCK)] for i in range(BLOCK)])
    assert (signs @ turned / 8)[place] == pytest.approx(level(code), abs=1e-9)


def test_levels_are_in_order_and_even():
    levels = [level(code) for code in range(21)]
    assert levels == sorted(levels)
    np.testing.assert_allclose(levels, [-one for one in reversed(levels)], atol=1e-12)


def test_a_code_of_255_makes_a_token_that_is_not_a_number():
    block = bytes([102]) + bytes([128]) * 64
    token = unpack_token(block + bytes([255]) + block[1:], Precision.INT8)
    assert np.isnan(token).tolist() == [False] * 64 + [True] * 64
