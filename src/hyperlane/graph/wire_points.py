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
Doubled = npt.NDArray[np.int32]

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
    found = []
    for axis in (np.arange(-22, 23, 2), np.arange(-23, 24, 2)):
        pairs = np.add.outer(axis**2, axis**2)
        places = np.nonzero(np.add.outer(pairs, pairs) <= LARGEST_SQUARE)
        found.append(np.stack([axis[place] for place in places]))
    doubled = np.concatenate(found, axis=1)
    key = np.square(doubled).sum(0)
    for coordinate in doubled:
        key = key << 6 | coordinate + 32
    return np.ascontiguousarray(doubled[:, np.argsort(key)].T)


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
    """Of each cell, by `cell_strides` and `HALF_CELLS`, its point's number; of one outside of the ball a near one's.

    Coordinates are rows here: sums over four neighbours in memory would take ten times as long.
    """
    cells = _cells()
    at = (2 * cells).astype(np.int32)
    outside = np.flatnonzero(np.square(at).sum(0) > LARGEST_SQUARE)
    away = cells[:, outside]
    for shrinks in range(1, 20):
        if not len(outside):
            break
        near = _doubled_nearest(_shrunk(away, shrinks))
        at[:, outside] = near
        still = np.square(near).sum(0) > LARGEST_SQUARE
        outside, away = outside[still], away[:, still]
    numbers = np.zeros(cells.shape[1], np.float32)
    numbers[_index(points().T.astype(np.int32))] = np.arange(len(points()))
    return numbers[_index(at)]


def cell_strides() -> Floats:
    """What coordinates of a cell are multiplied by, float32 [4, 1]."""
    return np.array([[_SIDE**3], [_SIDE**2], [_SIDE], [1]], np.float32)


WHOLE_CELLS = REACH * (_SIDE**4 - 1) // (_SIDE - 1)
HALF_CELLS = WHOLE_CELLS + _SIDE**4
"""Added to coordinates times strides: of cells around whole numbers, and of those above them by a half."""


def _cells() -> Floats:
    """Every cell's point, float32 [4, 781250]: around whole numbers, then those above them by a half."""
    axis = np.arange(-REACH, REACH + 1, dtype=np.float32)
    made = np.empty((4, 2, *[_SIDE] * 4), np.float32)
    for coordinate, along in zip(made, np.ix_(axis, axis, axis, axis), strict=True):
        coordinate[0], coordinate[1] = along, along + np.float32(0.5)
    return made.reshape(4, -1)


def _shrunk(cells: Floats, shrinks: int) -> Floats:
    size = np.sqrt(np.square(cells).sum(0))
    found: Floats = cells * (np.float32(LARGEST_SQUARE**0.5 / 2 * (1.02 - 0.02 * shrinks)) / size)
    return found


def _doubled_nearest(values: Floats) -> Doubled:
    """Int32 of the same shape."""
    whole = np.round(values)
    is_half = np.abs(values - whole).sum(0) > 1
    return np.where(is_half, 2 * np.floor(values) + 1, 2 * whole).astype(np.int32)


def _index(doubled: Doubled) -> Doubled:
    """Where cells are, int32, of doubled coordinates [4, cells]."""
    found = np.zeros(doubled.shape[1], np.int32)
    for coordinate in doubled // 2:
        found = found * _SIDE + coordinate
    return found + np.where(doubled[0] & 1, np.int32(HALF_CELLS), np.int32(WHOLE_CELLS))
