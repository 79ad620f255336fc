import numpy as np

from hyperlane.core import RopeFacts
from hyperlane.graph.rope import rotary_tables


def test_tables_hold_cosines_and_sines_of_position_times_frequency():
    cos, sin = rotary_tables(RopeFacts(theta=100.0, dims=4), 50)
    assert cos.shape == sin.shape == (50, 2)
    assert cos.dtype == np.float32
    np.testing.assert_allclose(cos[7], [np.cos(7), np.cos(0.7)], rtol=1e-6)
    np.testing.assert_allclose(sin[7], [np.sin(7), np.sin(0.7)], rtol=1e-6)


def test_factors_divide_frequencies_and_scale_divides_positions():
    plain = rotary_tables(RopeFacts(theta=100.0, dims=4), 50)
    scaled = rotary_tables(RopeFacts(theta=100.0, dims=4, scale=2.0), 50)
    factored = rotary_tables(RopeFacts(theta=100.0, dims=4, factors=(1.0, 4.0)), 50)
    np.testing.assert_array_equal(scaled[0][14], plain[0][7])
    np.testing.assert_array_equal(factored[1][:, 0], plain[1][:, 0])
    np.testing.assert_allclose(factored[1][40, 1], plain[1][10, 1], rtol=1e-6)
