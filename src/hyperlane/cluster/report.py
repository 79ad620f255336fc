"""What whoever starts a pipeline is told while it comes up. Data only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of the way. `who`: a worker's name, or `head`; `phase`: what it does, in a few words.

    `done` of `total` in the phase's own unit (bytes, layers, …); total 0: not known. `rate`: units a second, of the
    last moments; `sources`: how much came from where (cache, peer, head, hub).
    """

    who: str
    phase: str
    done: int = 0
    total: int = 0
    rate: float = 0.0
    sources: tuple[tuple[str, int], ...] = ()


Report = Callable[[Progress], None]
"""Called from any thread, must not block."""


def silent(_progress: Progress) -> None:
    """A `Report` for those who do not care."""
