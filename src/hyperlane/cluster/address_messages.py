"""Between proto messages and our dataclasses: addresses and nodes, which every other message holds."""

from __future__ import annotations

from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.core import Address, NodeId
from hyperlane.errors import ProtocolError

NODE_ID_BYTES = 16


def address_to(address: Address) -> pb.Address:
    """For a request."""
    return pb.Address(host=address.host, port=address.port)


def address_from(message: pb.Address) -> Address:
    """As it came."""
    if not message.host or not 0 < message.port < 1 << 16:
        raise ProtocolError(f"'{message.host}:{message.port}' is no address")
    return Address(message.host, message.port)


def node_from(data: bytes) -> NodeId | None:
    """A node's id as it came; None when none was named."""
    if len(data) not in (0, NODE_ID_BYTES):
        raise ProtocolError(f"a node's id has {NODE_ID_BYTES} bytes, not {len(data)}")
    return NodeId(data) if data else None
