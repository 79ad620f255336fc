"""What a stage's links must agree on, derived from its spec: both ends compute it, HELLO compares. Pure."""

from __future__ import annotations

from dataclasses import astuple

from hyperlane import __version__
from hyperlane.core import ElementType, Precision, StageSpec
from hyperlane.errors import ConfigError, ProtocolError
from hyperlane.wire.frame import Hello, Role
from hyperlane.wire.limits import Limits

MAX_PAYLOAD_BYTES = 1 << 28
"""256 MiB, unless one step's hidden states are more: bounds how many positions' whole logits one frame asks for."""


def token_bytes(hidden: int, precision: Precision, element: ElementType) -> int:
    """Bytes of one token's hidden state on a link.

    Raises:
        ConfigError: no engine packs to that precision yet.

    """
    if precision is not Precision.RAW:
        raise ConfigError(f"links of precision {precision.value} are not supported; use {Precision.RAW.value}")
    return hidden * element.bytes


def limits_of(spec: StageSpec, precision: Precision, element: ElementType) -> Limits:
    """The largest frame on a link of this stage."""
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
    limits = limits_of(spec, precision, element)
    return Hello(spec.epoch, spec.index, role, limits, element, precision, spec.model.hidden, __version__)


def hello_to_next(spec: StageSpec, element: ElementType) -> Hello:
    """What this stage says to the one after it."""
    limits = limits_of(spec, spec.precision_out, element)
    return Hello(
        spec.epoch, spec.index + 1, Role.UPSTREAM, limits, element, spec.precision_out, spec.model.hidden, __version__
    )


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
