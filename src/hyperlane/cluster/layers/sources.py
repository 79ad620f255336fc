"""Where pieces of tensors come from: another machine's tensor server, or files of the hub. Blocking, for threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import grpc

from hyperlane.cluster import rpc
from hyperlane.cluster.layers.dispatch import SourceKind
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.pb.control_pb2_grpc import TensorsStub
from hyperlane.core import Address
from hyperlane.errors import TransferError
from hyperlane.models.ranges import ByteRanges, TensorPlace
from hyperlane.store.pieces import Piece

PIECE_TIMEOUT_S = 60.0
"""Deadline of one piece. A peer that is gone is noticed by keep-alive, sooner."""


class PieceSource(Protocol):
    """Somebody who has tensors. `parallel`: how many pieces at a time it is good for."""

    kind: SourceKind
    who: str
    parallel: int

    def held(self) -> Mapping[str, str] | None:
        """The tensors that it has now, with what it says their digests are; None: all of them. Raises TransferError."""
        ...

    def fetch(self, piece: Piece) -> bytes | bytearray:
        """A piece's bytes, exactly as many as it has. Raises TransferError."""
        ...

    def close(self) -> None:
        """End what is under way. Idempotent."""
        ...


class ServerSource:
    """A tensor server: the head's or another worker's."""

    parallel = 3

    def __init__(
        self, kind: SourceKind, address: Address, channel: grpc.Channel, fingerprint: str, token: str = ""
    ) -> None:
        """`channel` to the server at `address`; it is closed with this. `token`: what the head's server asks for."""
        self.kind = kind
        self.who = f"the {'head' if kind is SourceKind.HEAD else 'worker'}'s tensor server at {address}"
        self._address = address
        self._channel = channel
        self._stub = TensorsStub(channel)
        self._fingerprint = fingerprint
        self._token = token

    def held(self) -> Mapping[str, str] | None:
        """As `PieceSource.held`."""
        if self.kind is SourceKind.HEAD:
            return None
        request = pb.ListHeldRequest(token=self._token, fingerprint=self._fingerprint)
        try:
            response = self._stub.ListHeld(request, timeout=rpc.CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise self._error(error) from error
        if response.all:
            return None
        if len(response.names) != len(response.digests):
            raise TransferError(f"{self.who} named {len(response.names)} tensors and {len(response.digests)} digests")
        return {name: digest.hex() for name, digest in zip(response.names, response.digests, strict=True)}

    def fetch(self, piece: Piece) -> bytearray:
        """As `PieceSource.fetch`."""
        request = pb.FetchRangeRequest(
            token=self._token,
            fingerprint=self._fingerprint,
            name=piece.name,
            offset=piece.offset,
            length=piece.length,
        )
        data = bytearray()
        try:
            for chunk in self._stub.FetchRange(request, timeout=PIECE_TIMEOUT_S):
                data += chunk.data
                if len(data) > piece.length:
                    break
        except grpc.RpcError as error:
            raise self._error(error) from error
        except ValueError as error:  # what gRPC says of a channel that was closed meanwhile
            raise TransferError(f"the transfer from {self.who} was given up") from error
        if len(data) != piece.length:
            raise TransferError(f"{self.who} sent {len(data)} bytes of '{piece.name}' instead of {piece.length}")
        return data

    def close(self) -> None:
        """As `PieceSource.close`."""
        self._channel.close()

    def _error(self, error: grpc.RpcError) -> TransferError:
        return TransferError(str(rpc.our_error(error, self._address, self.who.partition(" at ")[0], PIECE_TIMEOUT_S)))


class HubSource:
    """The model's files at the hub, or any server that gives ranges of them."""

    kind = SourceKind.HUB
    parallel = 4

    def __init__(self, who: str, files: Sequence[ByteRanges], places: Mapping[str, TensorPlace]) -> None:
        """`files`: by the number that `places` counts them with; they are closed with this."""
        self.who = who
        self._files = files
        self._places = places

    def held(self) -> None:
        """As `PieceSource.held`."""
        return

    def fetch(self, piece: Piece) -> bytes:
        """As `PieceSource.fetch`."""
        place = self._places[piece.name]
        data = self._files[place.file].read(place.offset + piece.offset, piece.length)
        if len(data) != piece.length:
            raise TransferError(f"{self.who} sent {len(data)} bytes of '{piece.name}' instead of {piece.length}")
        return data

    def close(self) -> None:
        """As `PieceSource.close`."""
        for file in self._files:
            file.close()
