"""The points of int4: as many as numbers hold, and every cell's own or a near one."""

from __future__ import annotations

import numpy as np

from hyperlane.graph import wire_points
from hyperlane.testing.packed import point_table


def cell_of(near: np.ndarray) -> int:
    whole = np.round(near)
    is_half = np.abs(near - whole).sum() > 1
    corner = np.floor(near) if is_half else whole
    return int(corner @ wire_points.cell_strides()[:, 0]) + (
        wire_points.HALF_CELLS if is_half else wire_points.WHOLE_CELLS
    )


def test_numbers_stand_for_what_the_page_says():
    table = point_table()
    np.testing.assert_allclose(wire_points.levels()[: len(table)], table, rtol=0, atol=1e-6)
    assert not wire_points.levels()[len(table) :].any()
    assert len(wire_points.levels()) == wire_points.NUMBERS


def test_a_point_is_in_its_own_cell():
    numbers = wire_points.numbers_of_cells()
    for number in range(0, len(wire_points.points()), 997):
        assert numbers[cell_of(wire_points.points()[number] / 2)] == number


def test_a_vector_within_the_ball_goes_to_the_nearest_point():
    points = wire_points.points() / 2
    for seed in range(50):
        near = np.random.default_rng(seed).uniform(-4, 4, 4)
        found = points[int(wire_points.numbers_of_cells()[cell_of(near)])]
        assert np.square(found - near).sum() <= np.square(points - near).sum(-1).min() + 1e-9


def test_a_vector_outside_goes_to_a_point_near_it():
    points = wire_points.points() / 2
    radius = wire_points.LARGEST_SQUARE**0.5 / 2
    for seed in range(50):
        way = np.random.default_rng(seed).standard_normal(4)
        near = np.clip(1.1 * radius * way / np.linalg.norm(way), -11.99, 11.99)
        found = points[int(wire_points.numbers_of_cells()[cell_of(near)])]
        least = np.sqrt(np.square(points - near).sum(-1).min())
        assert np.linalg.norm(found - near) < least + 1
