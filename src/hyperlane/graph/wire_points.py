"""The points that int4 rounds four values at once to, their numbers, and what they stand for. Pure arithmetic.

They are points of a lattice in four dimensions (D4 in the form Z⁴ ∪ (Z + ½)⁴, which packs balls most densely) inside a
ball, which suits a normal distribution better than the cube that four values rounded apart would fill.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.int64]

LARGEST_SQUARE = 563
"""Points p are those with |2 p|² up to this: 193,849 of them, which fit into 2¹⁶ · 3 numbers."""

NUMBERS = 3 << 16

BEND = 0.3
SPREAD = 14.95
"""A quad of size t scales is multiplied by spread / (1 + bend · t²) and taken to the nearest point."""

REACH = 12
"""Coordinates of cells are −12 … 12."""

LEVELS = (0.06597, 0.02103, -0.02061, 0.02485)
"""A point p stands for p (a + b u + c u² + d u³) scales, u = |2 p|² ÷ 563: nearly the mean of what is rounded to it."""

_SIDE = 2 * REACH + 1


@functools.cache
def points() -> Points:
    """Of each number the point, doubled, int64 [193849, 4]: by |2 p|², then by coordinates from the first on."""
    even, odd = np.arange(-22, 23, 2), np.arange(-23, 24, 2)
    cubes = [np.stack(np.meshgrid(*[axis] * 4, indexing="ij"), -1).reshape(-1, 4) for axis in (even, odd)]
    doubled = np.concatenate(cubes)
    squares = np.square(doubled).sum(-1)
    inside, squares = doubled[squares <= LARGEST_SQUARE], squares[squares <= LARGEST_SQUARE]
    found: Points = inside[np.lexsort((*inside.T[::-1], squares))]
    return found


@functools.cache
def levels() -> Floats:
    """Of each number what it stands for, in scales, float32 [196608, 4]; numbers without a point stand for nothing."""
    doubled = points()
    u = np.square(doubled).sum(-1, keepdims=True) / LARGEST_SQUARE
    made = np.zeros((NUMBERS, 4), np.float32)
    made[: len(doubled)] = doubled / 2 * np.polynomial.polynomial.polyval(u, LEVELS)
    return made


@functools.cache
def numbers_of_cells() -> Floats:
    """Of each cell, by `cell_strides` and `HALF_CELLS`, its point's number; of one outside of the ball a near one's."""
    axis = np.arange(-REACH, REACH + 1, dtype=np.float64)
    corners = np.stack(np.meshgrid(*[axis] * 4, indexing="ij"), -1).reshape(-1, 4)
    cells = np.concatenate([corners, corners + 0.5])
    at = (2 * cells).astype(np.int64)
    for shrinks in range(1, 20):
        outside = np.flatnonzero(np.square(at).sum(-1) > LARGEST_SQUARE)
        if not len(outside):
            break
        at[outside] = _doubled_nearest(cells[outside] * _shrunk(cells[outside], shrinks))
    numbers = np.zeros(len(cells), np.float32)
    numbers[_index(points())] = np.arange(len(points()))
    return numbers[_index(at)]


def cell_strides() -> Floats:
    """What coordinates of a cell are multiplied by, float32 [4, 1]."""
    return np.array([[_SIDE**3], [_SIDE**2], [_SIDE], [1]], np.float32)


WHOLE_CELLS = REACH * (_SIDE**4 - 1) // (_SIDE - 1)
HALF_CELLS = WHOLE_CELLS + _SIDE**4
"""Added to coordinates times strides: of cells around whole numbers, and of those above them by a half."""


def _shrunk(cells: npt.NDArray[np.float64], shrinks: int) -> npt.NDArray[np.float64]:
    size = np.sqrt(np.square(cells).sum(-1, keepdims=True))
    found: npt.NDArray[np.float64] = LARGEST_SQUARE**0.5 / 2 / size * (1.02 - 0.02 * shrinks)
    return found


def _doubled_nearest(values: npt.NDArray[np.float64]) -> Points:
    whole = np.round(values)
    is_half = np.abs(values - whole).sum(-1, keepdims=True) > 1
    return np.where(is_half, 2 * np.floor(values) + 1, 2 * whole).astype(np.int64)


def _index(doubled: Points) -> Points:
    is_half = doubled[:, 0] % 2
    found: Points = (doubled // 2) @ cell_strides()[:, 0].astype(np.int64)
    return found + np.where(is_half, HALF_CELLS, WHOLE_CELLS)
