"""What a frame costs the stages, learnt from those that came back: how much of a prompt may ride beside decode rows.

Knows no clock and no lane; times are given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FORGET = 0.98
"""Weight of a frame beside the one after it: some fifty frames count."""

GAIN = 0.8
"""Of the time that prompts may take beside streams: what is left keeps the 95th percentile where the mean should be."""

UNKNOWN = 16
"""Tokens of prompts in a frame before anything was learnt."""

LEAST = 2
"""Tokens of a prompt that a frame holds, however little time there is: none starves."""

WORTH = 1.0
"""What a piece in a frame of its own costs for its tokens is at least so many times what it costs whatever its size.

Without it a long past, which every piece reads whole, would make pieces so small that a prompt hardly goes on.
"""

LIGHTLY = 0.25
"""The same of a piece that goes with decode rows, and is paid for in every frame."""

SPREAD, SPREAD_APART = 6, 4
"""Pieces differ in size by at least one part in so many: from pieces of one size no line is learnt."""

ORIGIN = 0.01
"""Weight of the origin beside all frames: keeps a line defined while all frames are of one size."""


@dataclass(slots=True)
class _Line:
    """A straight line through points that fade, and through the origin with little weight."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def note(self, x: float, y: float) -> None:
        self.weight = FORGET * self.weight + 1
        self.x = FORGET * self.x + x
        self.y = FORGET * self.y + y
        self.xx = FORGET * self.xx + x * x
        self.xy = FORGET * self.xy + x * y

    def fit(self) -> tuple[float, float]:
        """Intercept and slope, neither below 0."""
        weight = self.weight * (1 + ORIGIN)
        slope = max(0.0, (weight * self.xy - self.x * self.y) / (weight * self.xx - self.x * self.x))
        return max(0.0, (self.y - slope * self.x) / weight), slope

    def at(self, x: float) -> float:
        intercept, slope = self.fit()
        return intercept + slope * x

    def spread(self) -> float:
        """Standard deviation of x: how well the slope is known."""
        return math.sqrt(max(0.0, self.xx / self.weight - (self.x / self.weight) ** 2))


class FrameCosts:
    """Microseconds of compute, all stages together, by rows of one token and by tokens of prompts. One thread."""

    def __init__(self) -> None:
        self._decode = _Line()
        self._prompt = _Line()
        self._larger = False

    def note(self, rows: int, tokens: int, cost_us: float) -> None:
        """A frame with so many rows of one token and so many tokens of prompts came back."""
        self._larger ^= tokens > 0
        if not tokens:
            self._decode.note(rows, cost_us)
        elif not rows:
            self._prompt.note(tokens, cost_us)
        elif self._decode.weight:
            self._prompt.note(tokens, max(0.0, cost_us - self._decode.at(rows)))

    def room(self, rows: int, usual: int, share: float) -> int:
        """Tokens of prompts for a frame with so many decode rows.

        It should not take longer than 1 + `share` times what a frame with the `usual` rows and no prompt takes.
        """
        if not (self._decode.weight and self._prompt.weight):
            return UNKNOWN
        limit = (1 + GAIN * share) * self._decode.at(usual) - (self._decode.at(rows) if rows else 0.0)
        fixed, each = self._prompt.fit()
        return self._size(max(limit - fixed, LIGHTLY * fixed) / max(each, 1e-3), SPREAD)

    def piece(self, usual: int, groups: int, stages: int, share: float) -> int:
        """Tokens of prompts for a frame of their own, one for each time that all `groups` of decode rows went.

        0 where they better go with the rows: what a piece costs whatever its size is then small beside what a frame
        may take. Else it is spent once for all groups, and while one stage has the piece the others have rows. Such a
        round of frames takes 1 + `share` times what it takes without the piece, or longer where the past is so long
        that hardly a token would fit. With fewer groups than more than two stages the rows would come up with a piece
        and stay behind it through all stages.
        """
        if stages == 1 or stages > max(groups, 2) or not (self._decode.weight and self._prompt.weight):
            return 0
        fixed, each = self._prompt.fit()
        frame = self._decode.at(usual)
        if fixed < GAIN * share * frame / 2:
            return 0
        limit = ((1 + GAIN * share) * max(groups, stages) - groups) * frame
        return self._size(max(limit - fixed, WORTH * fixed) / max(each, 1e-3), SPREAD_APART)

    def _size(self, tokens: float, spread: int) -> int:
        """Whole tokens, by turns fewer and more while all pieces of late were about as large."""
        size = max(LEAST, int(tokens))
        if self._prompt.spread() >= size / spread:
            return size
        change = max(1, size // spread)
        return size + change if self._larger else max(LEAST, size - change)
