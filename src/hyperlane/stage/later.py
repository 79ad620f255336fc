"""A second session over a stage's weights, made beside its first steps. Knows no graph and no runtime."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from hyperlane.errors import LoadFailed

log = logging.getLogger(__name__)

SOON_S = 1.0
"""After a load it is made without being asked for: a stage is ready sooner, and has it when it matters."""

Made = TypeVar("Made")


class Later(Generic[Made]):
    """Made at the first call of `get`, or a second after this object, by whoever comes first."""

    def __init__(self, make: Callable[[], Made], soon_s: float = SOON_S) -> None:
        self._make: Callable[[], Made] | None = make
        self._made: Made | None = None
        self._guard = threading.Lock()
        self._timer = threading.Timer(soon_s, self.get)
        self._timer.daemon = True
        self._timer.start()

    def get(self) -> Made | None:
        """What was made; None where that failed, or after `close`."""
        with self._guard:
            make, self._make = self._make, None
            if make is not None:
                try:
                    self._made = make()
                except (LoadFailed, MemoryError) as error:
                    log.warning("another session cannot be made, so its rows are more runs: %s", error)
            return self._made

    def made(self) -> Made | None:
        """As `get`, but None before it was made; does not wait."""
        return self._made

    def close(self) -> None:
        """Let go of it, or do not make it any more. Idempotent."""
        self._timer.cancel()
        with self._guard:
            self._make = self._made = None
