"""HELLO as bytes, and the rules of the answer. Pure: who is admitted is not decided here."""

from __future__ import annotations

import struct
from dataclasses import astuple, replace

from hyperlane.core import ElementType, Epoch, HeadId, Precision
from hyperlane.errors import ProtocolError
from hyperlane.wire.codec import HEADER, Header, plain
from hyperlane.wire.frame import Hello
from hyperlane.wire.kind import Kind, Role
from hyperlane.wire.limits import Limits

HELLO = struct.Struct("<16sHBBB3sI9IQ32s")
"""head id, stage, role, element, precision, reserved, hidden, limits (9 × u32, u64), version of Hyperlane."""

HELLO_BYTES = HEADER.size + HELLO.size

_ROLES = {int(role): role for role in Role}
_ELEMENTS = {1: ElementType.F32, 2: ElementType.F16, 3: ElementType.BF16}
_PRECISIONS = {1: Precision.RAW, 2: Precision.INT8, 3: Precision.INT4, 4: Precision.F32}
_ELEMENT_NUMBERS = {element: number for number, element in _ELEMENTS.items()}
_PRECISION_NUMBERS = {precision: number for number, precision in _PRECISIONS.items()}


def encode_hello(hello: Hello) -> bytes:
    """The whole frame, always `HELLO_BYTES` long.

    Raises:
        struct.error: a number is outside its field's range, or the head id is not 16 bytes.

    """
    if len(hello.epoch.head) != 16:
        raise struct.error(f"a head id has 16 bytes, not {len(hello.epoch.head)}")
    body = HELLO.pack(
        hello.epoch.head,
        hello.stage,
        hello.role,
        _ELEMENT_NUMBERS[hello.element],
        _PRECISION_NUMBERS[hello.precision],
        bytes(3),
        hello.hidden,
        *astuple(hello.limits),
        hello.version.encode("ascii", "replace")[:32],
    )
    return plain(Kind.HELLO, hello.epoch.counter, 0, body)


def check_hello_header(header: Header) -> None:
    """Hold a header that should be a HELLO's against what every HELLO has, before its body is read.

    Raises:
        ProtocolError: another kind or another length.

    """
    if header.kind != Kind.HELLO or header.rows_bytes != HELLO.size:
        raise ProtocolError(f"a link opens with HELLO, not with kind {header.kind} of {header.rows_bytes} bytes")
    if header.step or header.payload_bytes or header.rows or header.timings:
        raise ProtocolError("a HELLO with a step, rows, timings or a payload")


def read_hello(header: Header, body: memoryview | bytes) -> Hello:
    """The HELLO of a checked header and exactly its body.

    Raises:
        ProtocolError: a field is outside its range.

    """
    head, stage, role, element, precision, reserved, hidden, *limits, version = HELLO.unpack(body)
    text = version.rstrip(b"\0")
    if any(reserved) or role not in _ROLES or element not in _ELEMENTS or precision not in _PRECISIONS:
        raise ProtocolError(f"HELLO with role {role}, element type {element}, precision {precision}")
    if not hidden or not all(limits):
        raise ProtocolError("HELLO with a limit of zero")
    if not text.isascii() or not text.decode("ascii").isprintable():
        raise ProtocolError("HELLO with a version that is not printable")
    return Hello(
        Epoch(HeadId(head), header.epoch),
        stage,
        _ROLES[role],
        Limits(*limits),
        _ELEMENTS[element],
        _PRECISIONS[precision],
        hidden,
        text.decode("ascii"),
    )


def answer_to(hello: Hello, limits: Limits, version: str) -> Hello:
    """The HELLO that accepts another one."""
    return replace(hello, limits=limits, version=version)


def check_answer(hello: Hello, answer: Hello) -> None:
    """Whether an answer accepts exactly what was asked for, with limits that are no larger.

    Raises:
        ProtocolError: it does not.

    """
    if answer_to(answer, hello.limits, hello.version) != hello:
        raise ProtocolError(f"HELLO was answered for another link: {answer} instead of {hello}")
    if not answer.limits.within(hello.limits):
        raise ProtocolError(f"HELLO was answered with larger limits: {answer.limits} instead of {hello.limits}")
