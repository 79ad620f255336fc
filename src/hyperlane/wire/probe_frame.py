"""PROBE frames as bytes: what goes to and fro on a connection on which a path is measured. Pure but for the stream.

`docs/wire-format.md` has the layout. Nobody reads a payload: it is there to take time.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hyperlane import __version__
from hyperlane.core import ElementType, Epoch, HeadId, Precision
from hyperlane.errors import ProtocolError
from hyperlane.wire.codec import HEADER, MAGIC, PROTOCOL, Header, read_header
from hyperlane.wire.frame import Hello
from hyperlane.wire.kind import Kind, Role
from hyperlane.wire.limits import Limits
from hyperlane.wire.tls import Stream

BODY = struct.Struct("<I")
"""answer bytes."""

MAX_PAYLOAD_BYTES = 1 << 16
SMALL_BYTES = HEADER.size + BODY.size
_LIMITS = Limits(1, 1, 1, 1, 1, 4, max_payload_bytes=MAX_PAYLOAD_BYTES)
_ZEROS = bytes(MAX_PAYLOAD_BYTES)


@dataclass(frozen=True, slots=True)
class Probe:
    """A frame of `payload_bytes`, which is answered by one of `answer_bytes` and the same `step`."""

    step: int
    payload_bytes: int
    answer_bytes: int = 0


def probe_hello(head: HeadId) -> Hello:
    """What opens such a connection: it is of no epoch and no stage, and carries PROBE frames alone."""
    return Hello(Epoch(head, 0), 0, Role.PROBE, _LIMITS, ElementType.F32, Precision.RAW, 1, __version__)


def encode_probe(probe: Probe) -> bytes:
    """The whole frame."""
    size = probe.payload_bytes
    head = HEADER.pack(MAGIC, PROTOCOL, Kind.PROBE, 0, 0, probe.step, size, BODY.size, 0, 0)
    return b"".join((head, BODY.pack(probe.answer_bytes), _ZEROS[:size]))


def read_probe(data: bytes | bytearray | memoryview) -> Probe:
    """The frame whose first `SMALL_BYTES` these are.

    Raises:
        ProtocolError, VersionMismatch: they are no PROBE frame's, or it exceeds `MAX_PAYLOAD_BYTES`.

    """
    header = read_header(data)
    (answer_bytes,) = BODY.unpack_from(data, HEADER.size)
    _check(header, answer_bytes)
    return Probe(header.step, header.payload_bytes, answer_bytes)


def _check(header: Header, answer_bytes: int) -> None:
    is_probe = header.kind == Kind.PROBE and header.rows_bytes == BODY.size
    if not is_probe or header.epoch or header.rows or header.timings:
        raise ProtocolError(f"a frame of kind {header.kind} and {header.rows_bytes} bytes where paths are measured")
    if max(header.payload_bytes, answer_bytes) > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a PROBE of {header.payload_bytes} bytes that asks for {answer_bytes}")


class ProbeReader:
    """Receives PROBE frames from a blocking stream: a small one in one call."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._room = memoryview(bytearray(SMALL_BYTES + MAX_PAYLOAD_BYTES))
        self._filled = 0

    def next(self) -> Probe:
        """The next frame, when all of it is there.

        Raises:
            ConnectionError: the stream has ended.
            OSError: it failed, or its time is over.
            ProtocolError, VersionMismatch: as `read_probe`.

        """
        self._fill(SMALL_BYTES)
        probe = read_probe(self._room)
        size = SMALL_BYTES + probe.payload_bytes
        self._fill(size)
        rest = self._filled - size
        self._room[:rest] = bytes(self._room[size : self._filled])
        self._filled = rest
        return probe

    def _fill(self, count: int) -> None:
        while self._filled < count:
            received = self._stream.recv_into(self._room[self._filled :])
            if not received:
                raise ConnectionResetError("the connection was closed")
            self._filled += received
