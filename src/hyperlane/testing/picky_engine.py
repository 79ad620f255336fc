"""A toy engine whose arithmetic is another one for a row of one token than for a row of several, as attention's is.

An answer is the undisturbed one only if every position is computed again as it was the first time.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyperlane.core import Row
from hyperlane.testing.fake_engine import FakeEngine


class PickyEngine(FakeEngine):
    """A row of one token leaves other KV entries than a row of several, however many stages there are."""

    def _states(self, rows: Sequence[Row], given: bytearray) -> list[int]:
        states = super()._states(rows, given)
        alone = [(row.count == 1 or row.one_by_one) and self._spec.is_first for row in rows for _ in range(row.count)]
        return [state ^ is_alone for state, is_alone in zip(states, alone, strict=True)]
