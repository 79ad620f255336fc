"""What an engine's runs are made of: sessions to run, what a run is asked, what to look at when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnxruntime as ort

from hyperlane.core import Row
from hyperlane.stage.bindings import Binding, RunShape
from hyperlane.stage.buffers import Values
from hyperlane.stage.later import Later


@dataclass(frozen=True, slots=True)
class Sessions:
    """What computes a stage's graph. `many`: other kernels over the same entries, for batches of `many_from` and more.

    `least`: smaller captured batches are padded to so many rows. `singles`: for rows that are taken one by one.
    `beside`: for a batch and a prompt's piece in one run.
    """

    usual: ort.InferenceSession
    many: ort.InferenceSession | None = None
    many_from: int = 0
    least: int = 1
    singles: Later[ort.InferenceSession] | None = None
    beside: Later[ort.InferenceSession] | None = None

    @property
    def has_singles(self) -> bool:
        """Whether rows that are taken one by one can share runs; may take the time that making a session takes."""
        return self.singles is not None and self.singles.get() is not None

    @property
    def has_beside(self) -> bool:
        """Whether a batch and a prompt's piece can share a run by now."""
        return self.beside is not None and self.beside.made() is not None

    def of(self, shape: RunShape) -> ort.InferenceSession:
        """Which of them runs a shape."""
        later = self.beside if shape.beside >= 0 else self.singles if shape.singly else None
        if later is not None and (session := later.made()) is not None:
            return session
        if self.many is not None and shape.captured and shape.batch >= self.many_from:
            return self.many
        return self.usual

    def close(self) -> None:
        """Let go of what is made later, or do not make it any more."""
        for later in (self.singles, self.beside):
            if later is not None:
                later.close()


class Asked(NamedTuple):
    """A wanted position of a run: the `number`-th of row `at` of the frame, token `token` of the run.

    `line`: which of the run's answers is its.
    """

    row: Row
    at: int
    number: int
    token: int
    line: int


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run that was begun: what to look at when it is done.

    `moves`: hidden states [tokens, …] that it wrote, and from which token of the frame on they belong there.
    """

    binding: Binding
    asked: Sequence[Asked]
    moves: Sequence[tuple[Values, int]] = ()
