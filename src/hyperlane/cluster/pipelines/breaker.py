"""Which workers are left out for a while because they failed again and again. Pure; time is an argument.

A circuit breaker for each worker: closed while it works; open, and left out of plans, once it failed `FAILURES` times
within `WINDOW_S`; half-open after a pause, when a plan may try it that nobody waits for. One more failure opens it for
twice as long; without one it is closed after `TRUSTED_AFTER_S`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hyperlane.core import Address

FAILURES = 3
WINDOW_S = 120.0
PAUSE_S = 60.0
LONGEST_PAUSE_S = 960.0
TRUSTED_AFTER_S = 300.0
"""A worker that has not failed for so long, the time aside when it was left out, starts with a clean slate."""


@dataclass(frozen=True, slots=True)
class _Record:
    """Failures of one worker (seconds), how long it is left out, and since when."""

    failures: tuple[float, ...] = ()
    pause_s: float = PAUSE_S
    opened_s: float | None = None

    def is_open(self, now_s: float) -> bool:
        return self.opened_s is not None and now_s < self.opened_s + self.pause_s

    def is_over(self, now_s: float) -> bool:
        last_s = self.failures[-1] if self.opened_s is None else self.opened_s + self.pause_s
        return now_s - last_s > TRUSTED_AFTER_S


@dataclass(slots=True)
class Breakers:
    """One record for each worker that ever failed."""

    _records: dict[Address, _Record] = field(default_factory=dict)

    def failed(self, worker: Address, now_s: float) -> bool:
        """A worker failed; returns whether it is left out from now on."""
        record = self._records.get(worker, _Record())
        if record.failures and record.is_over(now_s):
            record = _Record()
        recent = (*(at_s for at_s in record.failures if now_s - at_s <= WINDOW_S), now_s)
        if record.opened_s is not None and not record.is_open(now_s):
            # It was tried again, and failed again.
            record = _Record(recent, min(2 * record.pause_s, LONGEST_PAUSE_S), now_s)
        elif record.opened_s is None and len(recent) >= FAILURES:
            record = _Record(recent, record.pause_s, now_s)
        else:
            record = replace(record, failures=recent)
        self._records[worker] = record
        return record.is_open(now_s)

    def is_open(self, worker: Address, now_s: float) -> bool:
        """Whether it is to be left out."""
        record = self._records.get(worker)
        return record is not None and record.is_open(now_s)

    def failures(self, worker: Address, now_s: float) -> int:
        """How often it failed, as far as that still counts."""
        record = self._records.get(worker)
        return 0 if record is None or record.is_over(now_s) else len(record.failures)

    def is_trusted(self, worker: Address, now_s: float) -> bool:
        """Whether requests may depend on it: it is neither left out nor to be tried first."""
        record = self._records.get(worker)
        return record is None or record.opened_s is None or record.is_over(now_s)

    def next_half_open_s(self, now_s: float) -> float | None:
        """Seconds until the next one may be tried again; None if none is left out."""
        ends = [
            record.opened_s + record.pause_s - now_s for record in self._records.values() if record.opened_s is not None
        ]
        return min((end_s for end_s in ends if end_s > 0), default=None)

    def reason(self, worker: Address, now_s: float) -> str:
        """Why it is left out, for people; empty if it is not."""
        record = self._records.get(worker)
        if record is None or record.opened_s is None or not record.is_open(now_s):
            return ""
        left_s = record.opened_s + record.pause_s - now_s
        return f"left out after {len(record.failures)} failures; tried again in {left_s:.0f} s"
