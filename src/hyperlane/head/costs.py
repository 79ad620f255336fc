"""What a frame costs the stages, learnt from those that came back: how much of a prompt may ride beside decode rows.

Knows no clock and no lane; times are given.
"""

from __future__ import annotations

from dataclasses import dataclass

FORGET = 0.98
"""Weight of a frame beside the one after it: some fifty frames count."""

GAIN = 0.8
"""Of the time that prompts may take beside streams: what is left keeps the 95th percentile where the mean should be."""

UNKNOWN = 16
"""Tokens of prompts in a frame before anything was learnt."""

LEAST = 2
"""Tokens of a prompt that a frame holds, however little time there is: none starves."""

ORIGIN = 0.02
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


class FrameCosts:
    """Microseconds of compute, all stages together, by rows of one token and by tokens of prompts. One thread."""

    def __init__(self) -> None:
        self._decode = _Line()
        self._prompt = _Line()

    def note(self, rows: int, tokens: int, cost_us: float) -> None:
        """A frame with so many rows of one token and so many tokens of prompts came back."""
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
        return max(LEAST, int((limit - fixed) / max(each, 1e-3)))
