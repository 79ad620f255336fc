"""The head's door as bytes: a length, then one message. Knows nothing of what is asked."""

from __future__ import annotations

import ssl
import struct
import time
from typing import Any

from google.protobuf.message import DecodeError

from hyperlane.cluster import messages
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.errors import ProtocolError

LENGTH = struct.Struct(">I")
MAX_BYTES = 1 << 14
"""Ours are below 2 KiB; a longer one is not read."""


def packed(message: Any) -> bytes:  # noqa: ANN401 (generated messages are untyped)
    """A message behind its length, with our version in it."""
    message.version.CopyFrom(messages.own_version())
    data = message.SerializeToString()
    return LENGTH.pack(len(data)) + bytes(data)


def read_request(sock: ssl.SSLSocket, deadline_s: float) -> pb.DoorRequest:
    """What somebody asks, until `deadline_s` (monotonic).

    Raises:
        ProtocolError: it is no request.
        VersionMismatch: it is one of another version.
        OSError: the connection ended, or took too long.

    """
    request = _parsed(pb.DoorRequest(), _message(sock, deadline_s))
    messages.check_version(request.version, "the machine that wants to join")
    return request


def read_response(sock: ssl.SSLSocket, deadline_s: float) -> pb.DoorResponse:
    """What the head answers, until `deadline_s` (monotonic).

    Raises:
        ProtocolError: it is no response.
        VersionMismatch: it is one of another version.
        OSError: the connection ended, or took too long.

    """
    response = _parsed(pb.DoorResponse(), _message(sock, deadline_s))
    messages.check_version(response.version, "the head")
    return response


def _message(sock: ssl.SSLSocket, deadline_s: float) -> bytes:
    (length,) = LENGTH.unpack(_exactly(sock, LENGTH.size, deadline_s))
    if not 0 < length <= MAX_BYTES:
        raise ProtocolError(f"a message of {length} bytes; what speaks here is no Hyperlane")
    return _exactly(sock, length, deadline_s)


def _parsed(message: Any, data: bytes) -> Any:  # noqa: ANN401
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError(f"a message that cannot be read: {error}") from error
    return message


def _exactly(sock: ssl.SSLSocket, count: int, deadline_s: float) -> bytes:
    data = bytearray()
    while len(data) < count:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("it was too slow")
        sock.settimeout(left_s)
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionResetError("the other side ended the connection")
        data += piece
    return bytes(data)
