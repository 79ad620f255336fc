"""`Served`: what a head is to those who keep it supplied with pipelines."""

from __future__ import annotations

from typing import Protocol

from hyperlane.core import Achieved, Kept, Plan
from hyperlane.errors import HyperlaneError
from hyperlane.wire.link import Ring


class Served(Protocol):
    """What a head is to its upkeep. Called from the event loop, but `pause`, which waits, from a thread."""

    def attach(self, ring: Ring, plan: Plan, epoch: int, kept: Kept | None = None) -> None:
        """Go on with this pipeline. `kept`: what its stages hold of the one before it."""
        ...

    def pause(self, verdict: HyperlaneError | None = None) -> None:
        """Let the running pipeline go; with a verdict it counts as lost."""
        ...

    def idle(self) -> bool:
        """Whether no request waits or runs."""
        ...

    def done(self) -> tuple[Achieved, int]:
        """What the last plan did of late, and how many tokens were generated since the start."""
        ...

    def excuse(self) -> None:
        """The step that was given up last was so rightly: somebody does not answer."""
        ...

    def prove(self) -> None:
        """Send a token through it, if no request does."""
        ...
