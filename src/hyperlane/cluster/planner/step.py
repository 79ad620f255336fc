"""One step of the searches: append a stage to partial layouts, for every number of layers at once. Pure arrays."""

from __future__ import annotations

import numpy as np

from hyperlane.cluster.planner.budget import Integers, Numbers


class WindowMinimum:
    """Least values within windows of a row's columns, for many rows at once.

    For each end e, the window is columns `begin[e]` … e − 1, empty where `begin[e]` ≥ e. Two overlapping spans of a
    power of two cover a window: log₂ passes over the rows answer all ends.
    """

    def __init__(self, begin: Integers) -> None:
        ends = np.arange(len(begin))
        widths = np.maximum(ends - begin, 0)
        self._empty = widths == 0
        self._level = np.frexp(np.maximum(widths, 1))[1] - 1
        self._left = np.where(self._empty, 0, begin)
        self._right = np.where(self._empty, 0, ends - (1 << self._level))
        self._levels = int(self._level.max()) + 1 if len(begin) else 1

    def of(self, rows: Numbers) -> Numbers:
        """float64[m, L + 1] → float64[m, L + 1]: the least of each end's window, infinite where that is empty."""
        spans = [rows]
        for level in range(1, self._levels):
            half, last = 1 << (level - 1), spans[-1]
            wider = last.copy()
            np.minimum(last[:, :-half], last[:, half:], out=wider[:, :-half])
            spans.append(wider)
        table = np.stack(spans)
        rows_at = np.arange(len(rows))[:, None]
        least: Numbers = np.minimum(table[self._level, rows_at, self._left], table[self._level, rows_at, self._right])
        least[:, self._empty] = np.inf
        return least
