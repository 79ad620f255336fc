"""Whether what was measured is to be measured again: a plan that has long done other than it was predicted. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hyperlane.core import Achieved, Prediction

LOOK_EVERY_S = 60.0
WRONG_BY = 1.5
"""A speed that is so many times another one is not the same; predictions are within a sixth of what comes, mostly."""

LOOKS = 10
"""So many looks in a row, of those between which tokens came, must find a plan wrong."""

LEAST_TOKENS = 32
"""Fewer tokens between two looks say nothing."""

AGAIN_AFTER_S, LONGEST_AFTER_S = 3600.0, 24 * 3600.0
"""Until measuring again once more, after the first time; twice as long after each further one that mended nothing."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """What the looks at one pipeline have found. `wrong`: how many in a row; `tokens`: how many there were by then.

    `times`: how often it was measured again and found wrong still. `not_before_s`: on the caller's clock.
    """

    wrong: int = 0
    tokens: int = 0
    times: int = 0
    not_before_s: float = float("-inf")

    def seen(self, prediction: Prediction | None, achieved: Achieved, tokens: int) -> Doubt:
        """After a look. `tokens`: all that were generated so far; a look without new ones changes nothing."""
        if tokens - self.tokens < LEAST_TOKENS:
            return self
        found = None if prediction is None else is_wrong(prediction, achieved)
        if found is None:
            return replace(self, wrong=0, tokens=tokens)
        if not found:
            return Doubt(tokens=tokens, not_before_s=self.not_before_s)
        return replace(self, wrong=self.wrong + 1, tokens=tokens)

    def is_due(self, now_s: float) -> bool:
        """Whether to measure again, as soon as nobody asks for anything."""
        return self.wrong >= LOOKS and now_s >= self.not_before_s

    def settled(self, now_s: float) -> Doubt:
        """After measuring again."""
        pause_s = min(LONGEST_AFTER_S, AGAIN_AFTER_S * float(1 << min(self.times, 16)))
        return Doubt(tokens=self.tokens, times=self.times + 1, not_before_s=now_s + pause_s)


def is_wrong(prediction: Prediction, achieved: Achieved) -> bool | None:
    """Whether a speed was far from what was predicted; None: nothing was done that was predicted."""
    found = []
    if achieved.token_s:
        found.append(achieved.token_s / prediction.token_s)
    if achieved.many_rate and achieved.streams == prediction.streams:
        found.append(prediction.many_rate / achieved.many_rate)
    if not found:
        return None
    return any(not 1 / WRONG_BY <= ratio <= WRONG_BY for ratio in found)
