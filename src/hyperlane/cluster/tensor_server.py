"""Serves the tensors of one model file, in a process of its own: no token ever waits for its interpreter lock.

`python -m hyperlane.cluster.tensor_server FILE HOST:PORT [TRUST]` announces itself and ends when its standard input
does. With the head's folder TRUST it encrypts, and asks for a certificate of the cluster. Knows no plan; whoever shows
the token may read every tensor.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio

from hyperlane.cluster import messages, rpc
from hyperlane.cluster.announce import Announcement, when_parent_ends
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.pb.control_pb2_grpc import add_TensorsServicer_to_server
from hyperlane.cluster.trust import grpc_tls
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.cluster.trust.trust import Trust
from hyperlane.core import Address
from hyperlane.errors import ConfigError, HyperlaneError, TransferError
from hyperlane.models.weights import TensorInfo, TensorSource

ALLOWED = {"/hyperlane.v1.Tensors/": grpc_tls.ALL_MEMBERS}
CHUNK_BYTES = 1 << 20
GRACE_S = 0.5


class TensorService:
    """The calls of `hyperlane.v1.Tensors`, as the generated server wants them."""

    def __init__(self, source: TensorSource, fingerprint: str, token: str) -> None:
        self._source = source
        self._fingerprint = fingerprint
        self._token = token
        self._digests: dict[str, asyncio.Task[bytes]] = {}

    async def ListTensors(self, request: Any, context: Any) -> Any:  # noqa: N802, ANN401 (named by the proto; generated messages are untyped)
        """Every tensor, in file order."""
        async with rpc.refusals(context):
            self._check(request.token)
            infos = [self._info(name) for name in self._source.names()]
            return pb.ListTensorsResponse(fingerprint=self._fingerprint, tensors=map(messages.tensor_to, infos))

    async def FetchTensor(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802, ANN401
        """Chunks from the asked offset on; each waits until the caller's window has room for it."""
        async with rpc.refusals(context):
            self._check(request.token)
            total = self._info(request.name).nbytes
            if request.offset > total:
                raise TransferError(f"tensor '{request.name}' has {total} bytes, none at offset {request.offset}")
            digest = self._digest(request.name)
            data = self._source.read(request.name).data
            for offset in range(request.offset, total, CHUNK_BYTES):
                chunk = bytes(data[offset : offset + CHUNK_BYTES])
                yield pb.FetchTensorResponse(offset=offset, total=total, data=chunk)
            yield pb.FetchTensorResponse(offset=total, total=total, sha256=await asyncio.shield(digest))

    def _check(self, token: str) -> None:
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            raise TransferError("this tensor server belongs to another head: the token is not its own")

    def _info(self, name: str) -> TensorInfo:
        info = self._source.info(name)
        if info is None:
            raise TransferError(f"the model has no tensor '{name}'")
        return info

    def _digest(self, name: str) -> asyncio.Task[bytes]:
        """Hashed in a thread while the bytes are on their way, once for all callers."""
        if name not in self._digests:
            work = asyncio.to_thread(lambda: hashlib.sha256(self._source.read(name).data).digest())
            self._digests[name] = asyncio.create_task(work)
        return self._digests[name]


async def start_server(
    service: TensorService, address: Address, trust: Trust | None = None
) -> tuple[grpc.aio.Server, Address]:
    """Listen, encrypted with `trust`; returns the server, and the address with the port that was chosen.

    Raises:
        ConfigError: nothing can listen there.

    """
    server = grpc.aio.server(
        interceptors=[grpc_tls.Gate(trust.check, ALLOWED)] if trust else [],
        options=(*rpc.SERVER_OPTIONS, *grpc_tls.SERVER_OPTIONS),
        maximum_concurrent_rpcs=256,
    )
    add_TensorsServicer_to_server(service, server)
    try:
        credentials = grpc_tls.server_credentials(trust) if trust else None
        port = grpc_tls.add_port(server, rpc.target(address), credentials)
    except RuntimeError as error:
        raise ConfigError(f"cannot serve tensors on {address}: the port is in use or the address not ours") from error
    await server.start()
    return server, Address(address.host, port)


async def _serve(path: Path, address: Address, trust: Trust | None) -> None:
    from hyperlane.models.source import open_model

    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    when_parent_ends(lambda: loop.call_soon_threadsafe(ended.set))
    with open_model(path) as file:
        token = secrets.token_hex(16)
        service = TensorService(file, file.fingerprint, token)
        server, bound = await start_server(service, address, trust)
        Announcement("tensors", bound, token).print()
        await ended.wait()
        await server.stop(GRACE_S)


def main() -> int:
    """The process's entry."""
    path, address, *trust_folder = sys.argv[1:]
    try:
        trust = HeadTrust(Path(trust_folder[0]), make=False) if trust_folder else None
        asyncio.run(_serve(Path(path), Address.parse(address), trust))
    except HyperlaneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
