"""The head's door as bytes: a length, then one message. Knows sockets only as asyncio or `ssl` present them."""

from __future__ import annotations

import asyncio
import ssl
import struct
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


async def read_request(reader: asyncio.StreamReader) -> pb.DoorRequest:
    """What somebody asks.

    Raises:
        ProtocolError: it is no request.
        VersionMismatch: it is one of another version.
        EOFError, OSError: the connection ended.

    """
    data = await reader.readexactly(_length(await reader.readexactly(LENGTH.size)))
    request = _parsed(pb.DoorRequest(), data)
    messages.check_version(request.version, "the machine that wants to join")
    return request


def read_response(sock: ssl.SSLSocket) -> pb.DoorResponse:
    """What the head answers.

    Raises:
        ProtocolError: it is no response.
        VersionMismatch: it is one of another version.
        OSError: the connection ended, or took too long.

    """
    response = _parsed(pb.DoorResponse(), _exactly(sock, _length(_exactly(sock, LENGTH.size))))
    messages.check_version(response.version, "the head")
    return response


def _length(data: bytes) -> int:
    (length,) = LENGTH.unpack(data)
    if not 0 < length <= MAX_BYTES:
        raise ProtocolError(f"a message of {length} bytes; what speaks here is no Hyperlane")
    return int(length)


def _parsed(message: Any, data: bytes) -> Any:  # noqa: ANN401
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError(f"a message that cannot be read: {error}") from error
    return message


def _exactly(sock: ssl.SSLSocket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionResetError("the head ended the connection")
        data += piece
    return bytes(data)
