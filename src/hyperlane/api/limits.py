"""What one API key may use: answers at once, requests and tokens per minute. Pure; times are arguments, in seconds.

Knows no key and no HTTP. Belongs to one event loop.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass

from hyperlane.errors import Overloaded
from hyperlane.head.turnover import Turnover

MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """None: no limit. `concurrent`: answers that run or wait at once, each of `n` counted.

    `tokens_per_minute`: of prompts and answers together.
    """

    concurrent: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class Limit(enum.StrEnum):
    """Which limit refused a request."""

    CONCURRENT = "concurrent"
    REQUESTS = "requests_per_minute"
    TOKENS = "tokens_per_minute"


class KeyExhausted(Overloaded):
    """A key has used what it may for now. `limit`: which of its limits."""

    def __init__(self, message: str, limit: Limit, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.limit = limit


class Bucket:
    """An allowance that fills up evenly, to a minute's worth at most. It may be overdrawn, and is then waited for."""

    def __init__(self, per_minute: int | None) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute or 0)
        self._at_s = 0.0

    def wait_s(self, amount: int, now_s: float) -> float:
        """Seconds until so much may be taken; what is more than a minute's worth takes a full bucket."""
        if self.per_minute is None:
            return 0.0
        self._fill(now_s)
        return max(0.0, min(amount, self.per_minute) - self._level) * MINUTE_S / self.per_minute

    def take(self, amount: int) -> None:
        """Take it, also below zero."""
        self._level -= amount

    def change(self, per_minute: int | None) -> None:
        """Another allowance from now on; what was used stays used."""
        if per_minute != self.per_minute:
            self._level += (per_minute or 0) - (self.per_minute or 0)
            self.per_minute = per_minute

    def _fill(self, now_s: float) -> None:
        full = float(self.per_minute or 0)
        self._level = min(full, self._level + max(0.0, now_s - self._at_s) * full / MINUTE_S)
        self._at_s = now_s


class Account:
    """What one key has used. `name`: what its owner is called in figures and messages; no secret."""

    def __init__(self, name: str, limits: KeyLimits) -> None:
        self.name = name
        self.limits = limits
        self.running = 0
        """Answers that run or wait."""
        self.requests = 0
        self.tokens = 0
        self.refused: Counter[Limit] = Counter()
        self._minute_requests = Bucket(limits.requests_per_minute)
        self._minute_tokens = Bucket(limits.tokens_per_minute)
        self._turnover = Turnover()

    def change(self, limits: KeyLimits) -> None:
        """Other limits from now on."""
        self.limits = limits
        self._minute_requests.change(limits.requests_per_minute)
        self._minute_tokens.change(limits.tokens_per_minute)

    def admit(self, answers: int, prompt_tokens: int, now_s: float) -> None:
        """Count a request with so many answers, or refuse it and count that.

        Raises:
            KeyExhausted: a limit is reached; nothing was used up.

        """
        self._check(answers, prompt_tokens, now_s)
        if not self.running:
            self._turnover.began(now_s)
        self.running += answers
        self.requests += 1
        self._minute_requests.take(1)
        self.spend(prompt_tokens)

    def give_back(self, answers: int, prompt_tokens: int) -> None:
        """The request was not taken on after all."""
        self.running -= answers
        self.requests -= 1
        self._minute_requests.take(-1)
        self.spend(-prompt_tokens)

    def spend(self, tokens: int) -> None:
        """Tokens of an answer. One that has begun is not cut off: the key waits longer for the next."""
        self.tokens += tokens
        self._minute_tokens.take(tokens)

    def ended(self, now_s: float) -> None:
        """One answer ended, however."""
        self.running -= 1
        self._turnover.ended(now_s)

    def _check(self, answers: int, prompt_tokens: int, now_s: float) -> None:
        most = self.limits.concurrent
        if most is not None and answers > most:
            raise self._refused(Limit.CONCURRENT, f"{answers} answers at once were asked for", 0.0)
        if most is not None and self.running + answers > most:
            used = f"{self.running} answers are under way"
            raise self._refused(Limit.CONCURRENT, used, self._turnover.retry_after_s(now_s))
        if wait_s := self._minute_requests.wait_s(1, now_s):
            raise self._refused(Limit.REQUESTS, "they are used up", wait_s)
        if wait_s := self._minute_tokens.wait_s(max(1, prompt_tokens), now_s):
            raise self._refused(Limit.TOKENS, "they are used up", wait_s)

    def _refused(self, limit: Limit, used: str, wait_s: float) -> KeyExhausted:
        self.refused[limit] += 1
        allowed = getattr(self.limits, limit.value)
        what = {Limit.CONCURRENT: "answers at once", Limit.REQUESTS: "requests", Limit.TOKENS: "tokens"}[limit]
        each = "" if limit is Limit.CONCURRENT else " a minute"
        again = f"; try again in {wait_s:.1f} s" if wait_s else "; ask for fewer"
        return KeyExhausted(f"The key of '{self.name}' may use {allowed} {what}{each}: {used}{again}.", limit, wait_s)
