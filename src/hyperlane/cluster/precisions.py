"""Which precision each link of a plan has, for the whole epoch: as asked, or as its measured path asks for. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

from hyperlane.cluster.planner.facts import PathFacts
from hyperlane.core import ElementType, Plan, Precision, WorkerFacts
from hyperlane.errors import ConfigError
from hyperlane.wire.packing import BLOCK, packs, token_bytes

CHUNK_TOKENS = 64
"""Tokens of a prompt that cross a link together."""

WORTH_INT8_S = 1e-3
"""Int8 is taken where it saves so much of a chunk: what it costs in perplexity is within the error of measuring it."""

WORTH_INT4_S = 5e-3
"""Int4, which costs some tenths of a per cent, is taken where it saves so much of a chunk beyond int8."""

WORTH_OF_RTT = 0.05
"""What saves less than this part of the round trip is not noticed on that path."""


class Wire(enum.StrEnum):
    """What links are to carry: one precision on all, or for each what suits its path."""

    AUTO = "auto"
    RAW = "raw"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def forced(self) -> Precision | None:
        """The precision that was asked for; None for AUTO."""
        return None if self is Wire.AUTO else Precision(self.value)

    @property
    def counted(self) -> Precision:
        """What predictions count bytes with: of AUTO the most that it may come to."""
        return self.forced or Precision.RAW


def precision_for(bytes_per_s: float, rtt_s: float, hidden: int, element: ElementType) -> Precision:
    """What suits a path of this speed for a model with so many values in a hidden state."""
    if not packs(hidden):
        return Precision.RAW
    raw_s, int8_s, int4_s = (
        CHUNK_TOKENS * token_bytes(hidden, precision, element) / bytes_per_s
        for precision in (Precision.RAW, Precision.INT8, Precision.INT4)
    )
    least_s = WORTH_OF_RTT * rtt_s
    if raw_s - int8_s < max(WORTH_INT8_S, least_s):
        return Precision.RAW
    return Precision.INT8 if int8_s - int4_s < max(WORTH_INT4_S, least_s) else Precision.INT4


def with_precisions(plan: Plan, wire: Wire, paths: Iterable[PathFacts] = ()) -> Plan:
    """The plan with the precision of each of its links; those to and from the head carry no hidden states.

    Within a machine, and where nothing was measured, AUTO is raw. Where two engines' own types differ, raw is float32.

    Raises:
        ConfigError: int8 or int4 was asked for, but the model's hidden states cannot be packed.

    """
    forced, hidden = wire.forced, plan.model.hidden
    if forced not in {None, Precision.RAW} and not packs(hidden) and len(plan.stages) > 1:
        raise ConfigError(
            f"--wire {wire}: hidden states of {plan.model.name} have {hidden} values, no multiple of {BLOCK}; "
            "use --wire raw"
        )
    known = {(path.source, path.target): path for path in paths}
    workers = [stage.worker for stage in plan.stages]
    inner = (
        _common(source, target)
        if (chosen := forced or _suiting(source, target, known, hidden)) is Precision.RAW
        else chosen
        for source, target in pairwise(workers)
    )
    return replace(plan, precisions=(Precision.RAW, *inner, Precision.RAW))


def _suiting(
    source: WorkerFacts, target: WorkerFacts, known: Mapping[tuple[str, str], PathFacts], hidden: int
) -> Precision:
    path = known.get((source.name, target.name))
    if path is None or path.loopback or source.shares_host_with(target):
        return Precision.RAW
    return precision_for(path.bytes_per_s, path.rtt_s, hidden, source.element)


def _common(source: WorkerFacts, target: WorkerFacts) -> Precision:
    """What is not packed: the type of both engines, or float32 between two."""
    return Precision.RAW if source.element is target.element else Precision.F32
