"""Whether a running plan should change: what would move, what it costs, and what it gains. Pure.

A plan changes only when that pays; a plan that cannot run any more is replaced in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hyperlane.core import LayerRange, StagePlan

MIN_GAIN = 0.05
"""Least part by which a plan must be faster: predictions are not better than that."""

HORIZON_S = 600.0
"""What a new plan costs must be won back within this time of use."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage is, for comparing plans. `worker`: its name."""

    worker: str
    layers: LayerRange


@dataclass(frozen=True, slots=True)
class Moved:
    """What one worker has to load that it does not hold: layers, and the parts at the model's two ends."""

    worker: str
    layers: tuple[int, ...]
    embedding: bool
    output: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to move. `gain`: part of the time per token that is saved. `load_s`: how long loading takes.

    `won_back_after_s`: when the time saved, in use, equals the time of loading; infinite if nothing is gained.
    """

    is_worth: bool
    gain: float
    load_s: float
    won_back_after_s: float
    why: str


def stages_of(stages: Iterable[StagePlan]) -> tuple[Stage, ...]:
    """A plan's stages, for comparing."""
    return tuple(Stage(stage.worker.name, stage.layers) for stage in stages)


def moved_layers(current: Sequence[Stage], candidate: Sequence[Stage]) -> tuple[Moved, ...]:
    """What each worker of the candidate lacks of its new stage; workers that lack nothing are left out."""
    moves = (_moved(current, candidate, number) for number in range(len(candidate)))
    return tuple(move for move in moves if move.layers or move.embedding or move.output)


def moved_count(moves: Iterable[Moved]) -> int:
    """Layers that are loaded somewhere new."""
    return sum(len(move.layers) for move in moves)


def worth_moving(
    current_s: float | None,
    candidate_s: float,
    load_s: float,
    *,
    min_gain: float = MIN_GAIN,
    horizon_s: float = HORIZON_S,
) -> Verdict:
    """Whether to replace the running plan.

    Args:
        current_s: seconds per token (or per round of many streams) of the running plan, predicted with the same facts
            as the candidate; None if it cannot run any more.
        candidate_s: the same of the candidate.
        load_s: seconds until the moved layers are loaded (`load_seconds`).
        min_gain: least part of the time that must be saved.
        horizon_s: seconds of use within which loading must be won back.

    """
    if current_s is None:
        return Verdict(True, 1.0, load_s, 0.0, "the running plan cannot go on")
    gain = 1 - candidate_s / current_s
    if gain <= 0:
        return Verdict(False, gain, load_s, float("inf"), "the running plan is as fast")
    back_s = load_s / gain
    said = f"{gain:.0%} less time per token, {load_s:.1f} s to load, won back after {back_s:.0f} s of use"
    if gain < min_gain:
        return Verdict(False, gain, load_s, back_s, f"{said}: less than the {min_gain:.0%} that count")
    if back_s > horizon_s:
        return Verdict(False, gain, load_s, back_s, f"{said}: later than {horizon_s:.0f} s")
    return Verdict(True, gain, load_s, back_s, said)


def load_seconds(moved_bytes: Iterable[tuple[int, float]]) -> float:
    """How long loading takes, all workers at once: of each the bytes that it lacks and its bytes per second."""
    return max((count / rate for count, rate in moved_bytes), default=0.0)


def _moved(current: Sequence[Stage], candidate: Sequence[Stage], number: int) -> Moved:
    stage = candidate[number]
    held = next((place for place, other in enumerate(current) if other.worker == stage.worker), None)
    old = range(0) if held is None else range(current[held].layers.first, current[held].layers.last)
    return Moved(
        stage.worker,
        tuple(layer for layer in range(stage.layers.first, stage.layers.last) if layer not in old),
        embedding=number == 0 and held != 0,
        output=number == len(candidate) - 1 and held != len(current) - 1,
    )
