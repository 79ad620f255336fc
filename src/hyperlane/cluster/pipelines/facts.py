"""What is asked for, what runs, and who is there: plain data about pipelines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hyperlane.cluster.planning import Planned
from hyperlane.cluster.profile.measured import Node
from hyperlane.cluster.wanted import Wanted
from hyperlane.core import Address, Epoch, Kept, Plan
from hyperlane.errors import HyperlaneError
from hyperlane.models.ranges import TensorPlaces
from hyperlane.wire.link import Ring


@dataclass(frozen=True, slots=True)
class Ask:
    """What to run: `wanted` is what a plan is made for.

    `file`: the model's own, None when it is not here; `places`: where its tensors lie.
    """

    wanted: Wanted
    file: Path | None
    places: TensorPlaces
    step_tokens: int
    connect_timeout_s: float = 10.0
    load_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A plan whose stages are loaded and linked, and the head's two ends of its ring.

    `kept`: what its stages hold of the pipeline that was brought up before it.
    """

    planned: Planned
    epoch: Epoch
    ring: Ring
    kept: Kept | None = None

    @property
    def plan(self) -> Plan:
        """Which layers run where."""
        return self.planned.plan


@dataclass(frozen=True, slots=True)
class Present:
    """A worker that answers. Its `memory_free` is free now; `held_bytes`: what its stages of this head take."""

    node: Node
    held_bytes: int
    is_leaving: bool


@dataclass(frozen=True, slots=True)
class Attendance:
    """Who is there, in the order of the addresses, and why others cannot be used."""

    present: tuple[Present, ...]
    missing: tuple[tuple[Address, HyperlaneError], ...]
