"""How fast tokens came of late: what a plan's prediction is held against. Knows no clock; times are given."""

from __future__ import annotations

from collections import deque
from math import log

from hyperlane.core import Achieved

WINDOW = 256
"""How many frames a speed is taken over."""

FIRSTS = 64
"""How many requests' times to the first token are kept."""

FEWEST = 8
"""A speed over fewer frames than that is not told."""


class Pace:
    """Speeds of one pipeline, by the number of streams that decoded. One thread notes, any thread reads."""

    __slots__ = ("_firsts", "_last_s", "_seen", "_streams")

    def __init__(self) -> None:
        self._seen: dict[int, deque[tuple[float, int]]] = {}
        self._streams = 0
        self._last_s = 0.0
        self._firsts: deque[tuple[float, int]] = deque(maxlen=FIRSTS)

    def note(self, now_s: float, tokens: int, *, streams: int, is_decode: bool) -> None:
        """A frame of so many decoded tokens came back while `streams` had a slot; the time since the last one counts.

        Only where both hold decode rows alone and the streams are as many: between two such frames nothing stood
        still, because a stream begins with its prompt.
        """
        if is_decode and streams == self._streams:
            self._seen.setdefault(streams, deque(maxlen=WINDOW)).append((now_s - self._last_s, tokens))
        self._streams = streams if is_decode else 0
        self._last_s = now_s

    def first(self, seconds: float, prompt_tokens: int) -> None:
        """A request that was alone had its first token so long after it got its slot."""
        self._firsts.append((seconds, prompt_tokens))

    def achieved(self, prompt_tokens: int = 0) -> Achieved:
        """The speeds of late.

        The first token's time is the last one's of the prompts whose length is the nearest to `prompt_tokens`, in
        proportion; with 0, the last one's.
        """
        seen = {streams: list(intervals) for streams, intervals in list(self._seen.items())}
        seen = {streams: intervals for streams, intervals in seen.items() if len(intervals) >= FEWEST}
        alone = seen.get(1, [])
        most = max((streams for streams in seen if streams > 1), default=0)
        together = seen.get(most, [])
        ttft_s, prompt = self._first_near(prompt_tokens)
        return Achieved(
            token_s=1 / rate if (rate := _rate(alone)) else 0.0,
            many_rate=_rate(together),
            streams=most,
            ttft_s=ttft_s,
            prompt_tokens=prompt,
        )

    def _first_near(self, prompt_tokens: int) -> tuple[float, int]:
        def distance(first: tuple[float, int]) -> float:
            return abs(log(first[1] / prompt_tokens)) if prompt_tokens else 0.0

        return min(reversed(list(self._firsts)), key=distance, default=(0.0, 0))


def _rate(intervals: list[tuple[float, int]]) -> float:
    seconds = sum(interval for interval, _ in intervals)
    return sum(tokens for _, tokens in intervals) / seconds if seconds else 0.0
