"""Between proto messages and our dataclasses: where weights come from. Checks what peers may forge.

Every reader raises ProtocolError for a message that no peer of our version sends.
"""

from __future__ import annotations

from hyperlane.cluster.address_messages import address_from, address_to, node_from
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.errors import ProtocolError
from hyperlane.models.ranges import RemoteFile, TensorPlace
from hyperlane.models.weights import TensorInfo
from hyperlane.stage.orders import TensorPeer, WeightSources

DIGEST_BYTES = 32


def sources_to(sources: WeightSources) -> pb.WeightSources:
    """For a request."""
    return pb.WeightSources(
        path_hint=sources.path_hint,
        tensor_server=address_to(sources.server) if sources.server else None,
        tensor_token=sources.token,
        tensors=[_place_to(place) for place in sources.tensors],
        peers=[pb.TensorPeer(address=address_to(peer.address), node=peer.node or b"") for peer in sources.peers],
        files=[pb.RemoteFile(url=f.url, size=f.size, digest=f.digest, etag=f.etag) for f in sources.files],
    )


def sources_from(message: pb.WeightSources) -> WeightSources:
    """As it came."""
    return WeightSources(
        path_hint=message.path_hint,
        server=address_from(message.tensor_server) if message.HasField("tensor_server") else None,
        token=message.tensor_token,
        tensors=tuple(_place_from(place, len(message.files)) for place in message.tensors),
        peers=tuple(TensorPeer(address_from(peer.address), node_from(peer.node)) for peer in message.peers),
        files=tuple(RemoteFile(f.url, f.size, f.digest, f.etag) for f in message.files),
    )


def _place_to(place: TensorPlace) -> pb.TensorPlace:
    info = place.info
    return pb.TensorPlace(
        info=pb.TensorInfo(name=info.name, shape=info.shape, type=info.type, nbytes=info.nbytes),
        file=place.file,
        offset=place.offset,
        digest=bytes.fromhex(place.digest),
    )


def _place_from(message: pb.TensorPlace, files: int) -> TensorPlace:
    if len(message.digest) not in (0, DIGEST_BYTES):
        raise ProtocolError(f"a tensor's digest has {DIGEST_BYTES} bytes, not {len(message.digest)}")
    if files and message.file >= files:
        raise ProtocolError(f"tensor '{message.info.name}' lies in file {message.file} of {files}")
    tensor = message.info
    info = TensorInfo(tensor.name, tuple(tensor.shape), tensor.type, tensor.nbytes)
    return TensorPlace(info, message.file, message.offset, message.digest.hex())
