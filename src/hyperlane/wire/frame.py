"""What travels on a link, as data. The bytes are described in `docs/wire-format.md`. Knows no socket and no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hyperlane.core import ElementType, Epoch, Precision, Row, StageTiming
from hyperlane.wire.kind import Buffer, Kind, Role
from hyperlane.wire.limits import Limits, Terms

__all__ = [
    "Buffer",
    "Copy",
    "Encoded",
    "Fault",
    "Frame",
    "Hello",
    "Kind",
    "Message",
    "PackedRows",
    "Role",
    "Sendable",
    "pass_on",
]


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The bytes of exactly these rows, kept so that a stage that passes a frame on need not pack them again."""

    rows: tuple[Row, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """One step on its way round the ring. `payload`: buffers that are sent one after the other, at most 64 of them.

    TOKENS: int32 token ids, rows one after the other. HIDDEN: packed hidden states, token-major.
    CANDIDATES and LOGITS: see `hyperlane.wire.candidates`. `timings`: one record for each stage passed.
    No slot appears in two rows; the rows are either all `whole_logits` or none. A received frame's payload is one
    buffer, possibly empty. `packed` is a cache of the codec's and no part of the frame's value.
    """

    kind: Kind
    epoch: int
    step: int
    rows: tuple[Row, ...] = ()
    payload: Sequence[Buffer] = ()
    timings: Sequence[StageTiming] = ()
    packed: PackedRows | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy the first `count` KV positions of one slot to another: each stage does it, in order, and passes it on."""

    epoch: int
    step: int
    source: int
    destination: int
    count: int


@dataclass(frozen=True, slots=True)
class Fault:
    """A stage can go on no further. Whoever receives it passes it on and drops the epoch's links.

    `step`: the frame that was being worked on, 0 if none was. `cause`: one line; what is not printable or beyond
    `codec.MAX_CAUSE_BYTES` is lost when it is sent.
    """

    epoch: int
    step: int
    stage: int
    cause: str


Message = Frame | Copy | Fault
"""What `Link.recv` returns."""


class Encoded(NamedTuple):
    """A message as the buffers that `codec.encode` would make of it."""

    buffers: list[Buffer]


Sendable = Message | Encoded
"""What `Link.send` takes."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a link's two ends must agree on before the first frame. The answer repeats it with the limits that hold.

    `stage`: index of the stage that is dialled. `hidden`: values of a hidden state. `version`: of Hyperlane, at
    most 32 bytes, for messages only: what decides is the protocol version in the frame header.
    """

    epoch: Epoch
    stage: int
    role: Role
    limits: Limits
    element: ElementType
    precision: Precision
    hidden: int
    version: str

    def terms(self, limits: Limits | None = None) -> Terms:
        """What holds on the link once it is open, with the answer's limits if these are other ones."""
        if self.role is Role.DOWNSTREAM:
            kinds = frozenset({Kind.CANDIDATES, Kind.LOGITS})
        else:
            kinds = frozenset({Kind.TOKENS if self.stage == 0 else Kind.HIDDEN})
        return Terms(self.epoch.counter, limits or self.limits, kinds, self.stage)


def pass_on(frame: Frame, kind: Kind, payload: Sequence[Buffer], timing: StageTiming) -> Frame:
    """The frame that a stage sends for one that it received; `codec.encode_passed_on` makes its bytes at once."""
    return Frame(kind, frame.epoch, frame.step, frame.rows, payload, (*frame.timings, timing), frame.packed)
