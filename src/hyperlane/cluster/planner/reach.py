"""How many layers a cluster's memory holds, whatever it costs in time. Pure; knows no speed and no link."""

from __future__ import annotations

import numpy as np

from hyperlane.cluster.planner.budget import Budget, Integers

EXACT_WORKERS = 13
"""Up to so many workers every order is tried; beyond, those of most memory are taken first."""


def reach(budget: Budget) -> int:
    """The most layers, from the first on, that stages can hold; all only if the output projection has a place too.

    Of the workers that share memory one takes part: it can hold what all of them could, but for its own cap.
    """
    groups = [[worker for worker, _ in limit.weights] for limit in budget.shared]
    windows = budget.use.within(budget.caps)
    layers = budget.use.count
    if windows.alone.any():
        return layers
    most = _furthest(budget)
    if len(budget.caps) > EXACT_WORKERS:
        return _by_memory(budget, most, groups)
    return _over_sets(most, windows.first_end, windows.last_begin, groups)


def _furthest(budget: Budget) -> Integers:
    """int64[n, L + 1]: where a middle stage on each worker ends at most when it begins at a layer; L at most."""
    use, room = budget.use, budget.caps - budget.use.stage
    rows = zip(use.layers, room, strict=True)
    ends = [np.searchsorted(row, row + left, side="right") - 1 for row, left in rows]
    return np.asarray(np.maximum(np.array(ends), np.arange(use.count + 1)), np.int64)


def _over_sets(most: Integers, first_end: Integers, last_begin: Integers, groups: list[list[int]]) -> int:
    """Over every set of workers: the furthest that any order of them comes, for what is further is never worse."""
    count, layers = int(most.shape[0]), int(most.shape[1]) - 1
    sets = np.arange(1 << count)
    far = np.zeros(1 << count, np.int64)
    sizes = np.bitwise_count(sets)
    allowed = np.ones(1 << count, np.bool_)
    for group in groups:
        allowed &= np.bitwise_count(sets & sum(1 << worker for worker in group)) <= 1
    far[1 << np.arange(count)] = first_end
    for size in range(1, count):
        before = sets[(sizes == size) & allowed & (far > 0)]
        for worker in range(count):
            mine = before[(before >> worker) & 1 == 0]
            mine = mine[allowed[mine | (1 << worker)]]
            if (far[mine] >= last_begin[worker]).any():
                return layers
            after = mine | (1 << worker)
            far[after] = np.maximum(far[after], np.minimum(most[worker][far[mine]], layers - 1))
    return int(np.max(far, where=allowed, initial=0))


def _by_memory(budget: Budget, most: Integers, groups: list[list[int]]) -> int:
    end: int = 0
    layers: int = budget.use.count
    taken: set[int] = set()
    windows = budget.use.within(budget.caps)
    for worker in np.argsort(-budget.caps, kind="stable").tolist():
        if worker in taken:
            continue
        if end > 0 and end >= windows.last_begin[worker]:
            return layers
        end = min(int(most[worker, end]) if end else int(windows.first_end[worker]), layers - 1)
        taken.update(*(group for group in groups if worker in group))
    return end
