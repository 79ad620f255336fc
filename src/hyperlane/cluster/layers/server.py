"""Serves tensors in a process of its own, so that no token waits for its interpreter lock.

`python -m hyperlane.cluster.layers.server file PATH FINGERPRINT …` is a head's: all tensors of one model file, for who
shows its token. `… store FOLDER …` is a worker's: whatever its cache holds, for members of its cluster. Both announce
themselves, and end when their standard input does. Without a folder of trust they speak plain text, on loopback alone.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc.aio

from hyperlane.cluster import rpc
from hyperlane.cluster.announce import Announcement, when_parent_ends
from hyperlane.cluster.layers.shelves import FileShelf, Shelf, StoreShelf
from hyperlane.cluster.machine import is_loopback
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.pb.control_pb2_grpc import add_TensorsServicer_to_server
from hyperlane.cluster.trust import grpc_tls
from hyperlane.cluster.trust.folder_trust import FolderTrust
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.cluster.trust.trust import Trust
from hyperlane.core import Address
from hyperlane.errors import ConfigError, HyperlaneError, TransferError

ALLOWED = {"/hyperlane.v1.Tensors/": grpc_tls.ALL_MEMBERS}
CHUNK_BYTES = 1 << 20
GRACE_S = 0.5
NICENESS = 10
"""Of a worker's server: the engine beside it goes first."""


class TensorService:
    """The calls of `hyperlane.v1.Tensors`, as the generated server wants them."""

    def __init__(self, shelf: Shelf, token: str = "") -> None:
        """`token`: what callers must show; empty for none."""
        self._shelf = shelf
        self._token = token

    async def ListHeld(self, request: Any, context: Any) -> Any:  # noqa: N802, ANN401 (named by the proto; generated messages are untyped)
        """What of a model is here."""
        async with rpc.refusals(context):
            self._check(request.token)
            held = await asyncio.to_thread(self._shelf.held, request.fingerprint)
            digests = map(bytes.fromhex, (held or {}).values())
            return pb.ListHeldResponse(all=held is None, names=held or (), digests=digests)

    async def FetchRange(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802, ANN401
        """Chunks; each waits until the caller's window has room for it."""
        async with rpc.refusals(context):
            self._check(request.token)
            data = await asyncio.to_thread(self._shelf.tensor, request.fingerprint, request.name)
            end = request.offset + request.length
            if end > len(data):
                raise TransferError(f"tensor '{request.name}' has {len(data)} bytes, not {end}")
            for offset in range(request.offset, end, CHUNK_BYTES):
                yield pb.FetchRangeResponse(data=bytes(data[offset : min(end, offset + CHUNK_BYTES)]))

    def _check(self, token: str) -> None:
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            raise TransferError("this tensor server belongs to another head: the token is not its own")


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


async def _serve(service: TensorService, address: Address, trust: Trust | None, token: str) -> None:
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    when_parent_ends(lambda: loop.call_soon_threadsafe(ended.set))
    server, bound = await start_server(service, address, trust)
    Announcement("tensors", bound, token).print()
    await ended.wait()
    await server.stop(GRACE_S)


def _serve_file(asked: argparse.Namespace, parts: ExitStack) -> None:
    from hyperlane.models.source import open_model

    trust = HeadTrust(Path(asked.trust), make=False) if asked.trust else None
    file = open_model(Path(asked.path))
    parts.callback(file.close)
    token = secrets.token_hex(16)
    asyncio.run(_serve(TensorService(FileShelf(asked.fingerprint, file), token), asked.listen, trust, token))


def _serve_store(asked: argparse.Namespace, _parts: ExitStack) -> None:
    if hasattr(os, "nice"):
        with suppress(OSError):
            os.nice(NICENESS)
    trust = FolderTrust(Path(asked.trust)) if asked.trust else None
    asyncio.run(_serve(TensorService(StoreShelf(Path(asked.path))), asked.listen, trust, ""))


def main() -> int:
    """The process's entry."""
    parser = argparse.ArgumentParser(prog="hyperlane.cluster.layers.server")
    parser.add_argument("what", choices=("file", "store"))
    parser.add_argument("path")
    parser.add_argument("--fingerprint", default="")
    parser.add_argument("--listen", type=Address.parse, required=True)
    parser.add_argument("--trust", default="")
    asked = parser.parse_args()
    try:
        if not asked.trust and not is_loopback(asked.listen.host):
            raise ConfigError(f"{asked.listen} can be reached from other machines: tensors go there encrypted alone")
        with ExitStack() as parts:
            {"file": _serve_file, "store": _serve_store}[asked.what](asked, parts)
    except HyperlaneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
