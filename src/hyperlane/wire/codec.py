"""Messages as buffers and back: pure functions, no socket. `docs/wire-format.md` describes every byte.

A receiver reads the fixed-size header, then the body (rows and timing records; its length is known and checked), then
the payload, straight into the place that is meant for it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from hyperlane.errors import LinkClosed, ProtocolError, VersionMismatch
from hyperlane.wire.frame import Copy, Encoded, Fault, Frame, Message, PackedRows, Sendable
from hyperlane.wire.kind import Buffer, Kind
from hyperlane.wire.limits import Terms, payload_bytes
from hyperlane.wire.rows import largest_rows_size, pack_rows, rows_size, unpack_rows
from hyperlane.wire.timings import TIMING, PassedTiming, TimingRecords, pack_timings

PROTOCOL = 2
MAGIC = b"HYPL"
HEADER = struct.Struct("<4sBBHQQQIHH")
"""magic, version, kind, flags, epoch, step, payload bytes, rows bytes, rows, timings."""

STEP = struct.Struct("<Q")
STEP_AT = 16
"""Where the step lies in a header."""

COPY = struct.Struct("<III")
FAULT = struct.Struct("<I")
MAX_CAUSE_BYTES = 1024
STEP_KINDS = frozenset({Kind.TOKENS, Kind.HIDDEN, Kind.CANDIDATES, Kind.LOGITS})

_HEADER_BYTES = HEADER.size
_KINDS = {int(kind): kind for kind in Kind}


class Header(NamedTuple):
    """The fixed-size beginning of every frame. `rows_bytes`: of the rows, or of a COPY's, FAULT's or HELLO's body."""

    magic: bytes
    version: int
    kind: int
    flags: int
    epoch: int
    step: int
    payload_bytes: int
    rows_bytes: int
    rows: int
    timings: int

    @property
    def body_bytes(self) -> int:
        """What lies between the header and the payload."""
        return self.rows_bytes + self.timings * TIMING.size


# --- sending ---------------------------------------------------------------------------------------------------


def size_of(buffer: Buffer) -> int:
    """Bytes of a buffer, whatever its items are."""
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def encode(message: Sendable) -> list[Buffer]:
    """The buffers that are sent one after the other: header with rows and timings, then the payload's own buffers.

    What the receiver would refuse is not looked for here.

    Raises:
        struct.error: a number is outside its field's range.

    """
    if isinstance(message, Encoded):
        return message.buffers
    if isinstance(message, Frame):
        rows, timings = packed_rows(message), message.timings
        size = _size_of_all(message.payload)
        head = HEADER.pack(
            MAGIC,
            PROTOCOL,
            message.kind,
            0,
            message.epoch,
            message.step,
            size,
            len(rows),
            len(message.rows),
            len(timings),
        )
        return [b"".join((head, rows, pack_timings(timings))), *message.payload]
    if isinstance(message, Copy):
        body = COPY.pack(message.source, message.destination, message.count)
        return [plain(Kind.COPY, message.epoch, message.step, body)]
    body = FAULT.pack(message.stage) + printable(message.cause)
    return [plain(Kind.FAULT, message.epoch, message.step, body)]


def encode_passed_on(frame: Frame, kind: Kind, payload: Sequence[Buffer], timing: PassedTiming) -> Encoded:
    """The buffers of `frame.pass_on`, with the bytes that they are in the timing record.

    Made at once from the bytes that came, as a stage's code is cold by the time that its engine is done.

    Raises:
        struct.error: as `encode`.

    """
    rows, before = packed_rows(frame), pack_timings(frame.timings)
    size, passed = _size_of_all(payload), len(before) // TIMING.size + 1
    sent = _HEADER_BYTES + len(rows) + TIMING.size * passed + size
    head = HEADER.pack(MAGIC, PROTOCOL, kind, 0, frame.epoch, frame.step, size, len(rows), len(frame.rows), passed)
    record = TIMING.pack(*timing[1:], sent, timing[0])
    return Encoded([b"".join((head, rows, before, record)), *payload])


def packed_rows(frame: Frame) -> bytes:
    """A frame's rows as bytes: as they came, or packed now."""
    packed = frame.packed
    return packed.data if packed is not None and packed.rows is frame.rows else pack_rows(frame.rows)


def _size_of_all(payload: Sequence[Buffer]) -> int:
    size = 0
    for buffer in payload:
        size += buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
    return size


def plain(kind: Kind, epoch: int, step: int, body: bytes) -> bytes:
    """A whole frame without rows, timings and payload."""
    return HEADER.pack(MAGIC, PROTOCOL, kind, 0, epoch, step, 0, len(body), 0, 0) + body


def bye(epoch: int) -> bytes:
    """The last frame of a link that is closed in order."""
    return plain(Kind.BYE, epoch, 0, b"")


def printable(text: str) -> bytes:
    """One line of UTF-8, at most `MAX_CAUSE_BYTES` long; what is not printable becomes a space."""
    line = "".join(c if c.isprintable() else " " for c in text[:MAX_CAUSE_BYTES])
    return line.encode("utf-8", "replace")[:MAX_CAUSE_BYTES].decode("utf-8", "ignore").encode("utf-8")


def size_sent(frame: Frame) -> int:
    """Bytes on the wire of a frame that its sender made, without timings yet."""
    rows = rows_size(frame.rows) if frame.packed is None else len(frame.packed.data)
    return _HEADER_BYTES + rows + _size_of_all(frame.payload)


# --- receiving -------------------------------------------------------------------------------------------------


def read_header(data: Buffer, offset: int = 0) -> Header:
    """The header at an offset, of any kind and epoch; `check_header` holds it against a link's terms.

    Raises:
        ProtocolError: no frame of ours, or reserved bits are set.
        VersionMismatch: a frame of another protocol version.

    """
    header = Header._make(HEADER.unpack_from(data, offset))
    if header.magic != MAGIC:
        raise ProtocolError(f"a frame begins with {header.magic!r}, not with {MAGIC!r}")
    if header.version != PROTOCOL:
        raise VersionMismatch(
            f"the peer speaks protocol version {header.version}, this side {PROTOCOL}: install the same Hyperlane"
        )
    if header.flags:
        raise ProtocolError(f"reserved flags {header.flags:#06x} are set")
    return header


def check_header(header: Header, terms: Terms) -> Kind:
    """Hold a header against the link's terms before a byte of the frame's rest is read.

    Raises:
        ProtocolError: another epoch, a kind that this link does not carry, or a length over its limit.

    """
    kind = _KINDS.get(header.kind)
    if header.epoch != terms.epoch:
        raise ProtocolError(f"a frame of epoch {header.epoch} on a link of epoch {terms.epoch}")
    if kind in terms.kinds:
        limits = terms.limits
        if (
            header.rows > limits.max_rows
            or header.timings > limits.max_timings
            or header.payload_bytes > limits.max_payload_bytes
            or header.rows_bytes > largest_rows_size(limits)
        ):
            raise ProtocolError(
                f"{header.rows} rows of {header.rows_bytes} bytes, {header.timings} timings and {header.payload_bytes} "
                f"bytes of payload exceed {limits}"
            )
        return kind
    if header.rows or header.timings or header.payload_bytes:
        raise ProtocolError(f"a frame of kind {header.kind} with rows, timings or a payload")
    if kind is Kind.COPY and header.rows_bytes == COPY.size:
        return kind
    if kind is Kind.FAULT and FAULT.size <= header.rows_bytes <= FAULT.size + MAX_CAUSE_BYTES:
        return kind
    if kind is Kind.BYE and not header.rows_bytes:
        return kind
    raise ProtocolError(f"a frame of kind {header.kind} and {header.rows_bytes} bytes has no place on this link")


def read_body(kind: Kind, header: Header, body: memoryview, terms: Terms) -> Message:
    """The message of a checked header and exactly its body, without payload; its payload's length is then right.

    Raises:
        LinkClosed: the frame is a BYE.
        ProtocolError: a field is not allowed, or payload bytes do not fit the rows.

    """
    if kind in STEP_KINDS:
        data = body[: header.rows_bytes]
        rows = unpack_rows(data, header.rows, terms.limits)
        expected = payload_bytes(kind, rows, terms.limits, terms.stage)
        if header.payload_bytes != expected:
            raise ProtocolError(f"{header.payload_bytes} bytes of payload, where the rows make {expected}")
        timings = TimingRecords(bytes(body[header.rows_bytes :])) if header.timings else ()
        return Frame(kind, header.epoch, header.step, rows, (), timings, PackedRows(rows, bytes(data)))
    if kind is Kind.COPY:
        return _read_copy(header, body, terms)
    if kind is Kind.FAULT:
        return read_fault(header, body)
    raise LinkClosed("the peer said BYE")


def _read_copy(header: Header, body: memoryview, terms: Terms) -> Copy:
    source, destination, count = COPY.unpack(body)
    limits = terms.limits
    if max(source, destination) >= limits.slots or source == destination or not 0 < count <= limits.context:
        raise ProtocolError(
            f"COPY of {count} positions from slot {source} to {destination}: there are {limits.slots} slots of "
            f"{limits.context}"
        )
    return Copy(header.epoch, header.step, source, destination, count)


def read_fault(header: Header, body: memoryview) -> Fault:
    """The FAULT of a header and exactly its body; also the answer that refuses a HELLO.

    Raises:
        ProtocolError: the cause is not one printable line of UTF-8.

    """
    (stage,) = FAULT.unpack_from(body)
    try:
        cause = str(body[FAULT.size :], "utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError("the cause of a FAULT is not UTF-8") from error
    if not cause.isprintable():
        raise ProtocolError("the cause of a FAULT is not printable")
    return Fault(header.epoch, header.step, stage, cause)
