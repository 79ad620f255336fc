"""`engine_ring`: a whole pipeline inside one process, one thread a stage, over memory links with real frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hyperlane.core import StageSpec
from hyperlane.stage.engine import Engine
from hyperlane.stage.stage import Stage
from hyperlane.wire.frame import Role
from hyperlane.wire.kind import Kind
from hyperlane.wire.limits import Limits, Terms
from hyperlane.wire.link import Ring
from hyperlane.wire.memory import memory_ring
from hyperlane.wire.packing import token_bytes


@contextmanager
def engine_ring(specs: Sequence[StageSpec], engines: Sequence[Engine]) -> Iterator[Ring]:
    """The head's ends of a ring through these engines; their threads end with the context."""
    ring, stages = linked(specs, engines)
    try:
        yield ring
    finally:
        ring.close()
        for stage in stages:
            stage.close()


def linked(specs: Sequence[StageSpec], engines: Sequence[Engine]) -> tuple[Ring, list[Stage]]:
    """The head's ends of a ring through these engines, and the stages, which the caller closes after it."""
    first = specs[0]
    limits = Limits(
        max_rows=first.slots,
        max_step_tokens=first.max_step_tokens,
        slots=first.slots,
        context=first.context,
        vocab=first.model.vocab,
        token_bytes=token_bytes(first.model.hidden, first.precision_out, engines[0].element),
    )
    kinds = [frozenset({Kind.TOKENS})] + [frozenset({Kind.HIDDEN})] * (len(specs) - 1)
    kinds.append(frozenset({Kind.CANDIDATES, Kind.LOGITS}))
    ring, links = memory_ring([Terms(first.epoch.counter, limits, one, stage) for stage, one in enumerate(kinds)])
    stages = [Stage(spec, engine, f"fake-{spec.index}") for spec, engine in zip(specs, engines, strict=True)]
    for stage, (incoming, outgoing) in zip(stages, links, strict=True):
        stage.attach(Role.UPSTREAM, incoming)
        stage.attach(Role.DOWNSTREAM, outgoing)
    return ring, stages
