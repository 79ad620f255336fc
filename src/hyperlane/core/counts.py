"""What became of requests, as numbers: how many were taken on, how each ended, and why others were refused."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Endings:
    """How requests ended. `cancelled`: their client left, or they were taken back. `deadline`: their time was over.

    `lost`: no pipeline was there to go on with, or the head stopped. `fault`: a stage failed because of them.
    """

    stop: int = 0
    length: int = 0
    cancelled: int = 0
    deadline: int = 0
    lost: int = 0
    fault: int = 0

    @property
    def total(self) -> int:
        """All that ended."""
        return self.stop + self.length + self.cancelled + self.deadline + self.lost + self.fault


@dataclass(frozen=True, slots=True)
class Refusals:
    """Why requests were not taken on. `queue_full`: too many waited. `no_pipeline`: there was none, nor one to come."""

    queue_full: int = 0
    no_pipeline: int = 0

    @property
    def total(self) -> int:
        """All that were refused."""
        return self.queue_full + self.no_pipeline


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """At one moment: every request that was admitted is in `endings` or among the unfinished."""

    admitted: int = 0
    endings: Endings = field(default_factory=Endings)
    refusals: Refusals = field(default_factory=Refusals)

    @property
    def unfinished(self) -> int:
        """Requests that wait or are answered."""
        return self.admitted - self.endings.total
