"""A worker's lease: one head at a time, for as long as it is heard of. Pure; time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hyperlane.core import HeadId

LEASE_S = 15.0
"""How long a worker keeps a head's stages without hearing from it; heads renew every 2 s."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who holds a worker. `taken_at`: seconds since 1970, for people; `renewed_s`: on the monotonic clock."""

    head: HeadId
    taken_at: float
    renewed_s: float
    length_s: float = LEASE_S

    def remaining_s(self, now_s: float) -> float:
        """Seconds until it runs out; 0 when it has."""
        return max(0.0, self.renewed_s + self.length_s - now_s)

    def renewed(self, now_s: float) -> Lease:
        """The lease after the head was heard of."""
        return replace(self, renewed_s=now_s)
