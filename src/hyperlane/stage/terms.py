"""What a spec says to others: what a stage's links must agree on (HELLO compares), and whom its engine serves. Pure."""

from __future__ import annotations

from dataclasses import astuple, replace

from hyperlane import __version__
from hyperlane.core import ElementType, Precision, StageSpec
from hyperlane.errors import ProtocolError
from hyperlane.wire.frame import Hello, Role
from hyperlane.wire.limits import Limits
from hyperlane.wire.packing import token_bytes

MAX_PAYLOAD_BYTES = 1 << 28
"""256 MiB, unless one step's hidden states are more: bounds how many positions' whole logits one frame asks for."""


def limits_of(spec: StageSpec, precision: Precision, element: ElementType) -> Limits:
    """The largest frame on a link of this stage.

    Raises:
        ConfigError: hidden states of this model cannot be packed so.

    """
    packed = token_bytes(spec.model.hidden, precision, element)
    return Limits(
        max_rows=spec.slots,
        max_step_tokens=spec.max_step_tokens,
        slots=spec.slots,
        context=spec.context,
        vocab=spec.model.vocab,
        token_bytes=packed,
        max_payload_bytes=max(MAX_PAYLOAD_BYTES, spec.max_step_tokens * packed),
    )


def hello_to(spec: StageSpec, role: Role, element: ElementType) -> Hello:
    """What whoever dials this stage says; for a link between stages that is the HELLO of the later one's upstream."""
    precision = spec.precision_in if role is Role.UPSTREAM else spec.precision_out
    return _hello(spec, spec.index, role, element, precision)


def hello_to_next(spec: StageSpec, element: ElementType) -> Hello:
    """What this stage says to the one after it."""
    return _hello(spec, spec.index + 1, Role.UPSTREAM, element, spec.precision_out)


def _hello(spec: StageSpec, stage: int, role: Role, element: ElementType, precision: Precision) -> Hello:
    """Packed links carry no element type: engines of different ones may be neighbours on them."""
    said = element if precision is Precision.RAW else ElementType.F32
    limits = limits_of(spec, precision, said)
    return Hello(spec.epoch, stage, role, limits, said, precision, spec.model.hidden, __version__)


def agree(mine: Hello, theirs: Hello) -> Limits:
    """The limits that hold on a link: the smaller of each.

    Raises:
        ProtocolError: the two mean different links or models.

    """
    for name in ("epoch", "stage", "role", "element", "precision", "hidden"):
        if getattr(mine, name) != getattr(theirs, name):
            raise ProtocolError(
                f"stage {mine.stage} of epoch {mine.epoch.counter} expects {name} {getattr(mine, name)} on this link, "
                f"not {getattr(theirs, name)}"
            )
    for name in ("slots", "context", "vocab", "token_bytes"):
        if getattr(mine.limits, name) != getattr(theirs.limits, name):
            raise ProtocolError(
                f"stage {mine.stage} of epoch {mine.epoch.counter} was loaded with {name} "
                f"{getattr(mine.limits, name)}, not {getattr(theirs.limits, name)}"
            )
    return Limits(*map(min, astuple(mine.limits), astuple(theirs.limits)))


def same_engine(held: StageSpec, asked: StageSpec) -> bool:
    """Whether two stages of one head are built alike: their place in the ring, and their epoch, aside."""
    same = replace(held, epoch=asked.epoch, index=asked.index, stages=asked.stages) == asked
    ends = (held.is_first, held.is_last) == (asked.is_first, asked.is_last)
    return same and ends and held.epoch.head == asked.epoch.head


def serves(held: StageSpec, asked: StageSpec) -> bool:
    """Whether the engine of a stage is what a later epoch of the same head asks for: its place in the ring aside."""
    return same_engine(held, asked) and held.epoch.counter < asked.epoch.counter
