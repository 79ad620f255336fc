"""The head's tensor server as a child process: started when a worker lacks the model's file, stopped after loading."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from pathlib import Path

from hyperlane.cluster.announce import STOP_WITHIN_S, Child, ChildFailed
from hyperlane.cluster.trust import old_tls
from hyperlane.core import Address
from hyperlane.errors import TransferError
from hyperlane.stage.orders import WeightSources

READY_WITHIN_S = 120.0
"""A large file is hashed once before it can be served."""


class WeightSupply:
    """Where workers get the weights of one model file from. One server for each of our addresses they reach us at."""

    def __init__(self, file: Path, logs: Path, trust: Path | None = None) -> None:
        """Nothing is started yet. `trust`: the head's folder of that name, for servers that encrypt."""
        self.file = file
        self._logs = logs
        self._trust = trust
        self._servers: dict[tuple[str, bool], tuple[Child, WeightSources]] = {}
        self._starting = asyncio.Lock()

    async def sources(self, worker: Address, *, holds_model: bool, encrypted: bool = False) -> WeightSources:
        """What to tell a worker: the file's place if it has it, else a server that it can reach, and as it speaks.

        Raises:
            TransferError: the server does not come up.

        """
        hint = str(self.file)
        if holds_model:
            return WeightSources(path_hint=hint)
        async with self._starting:
            key = (await asyncio.to_thread(address_towards, worker), encrypted)
            if key not in self._servers:
                self._servers[key] = await asyncio.to_thread(self._start, *key)
            return self._servers[key][1]

    async def close(self) -> None:
        """Stop the servers. Idempotent."""
        servers, self._servers = list(self._servers.values()), {}
        for child, _ in servers:
            await asyncio.to_thread(child.stop, time.monotonic() + STOP_WITHIN_S)

    def _start(self, host: str, encrypted: bool) -> tuple[Child, WeightSources]:
        command = [sys.executable, "-m", "hyperlane.cluster.tensor_server", str(self.file), str(Address(host, 0))]
        if encrypted:
            command.append(str(self._trust))
        log = self._logs / f"tensors-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{len(self._servers)}.log"
        child = Child(command, log, {**os.environ, **old_tls.VARIABLES})
        try:
            said = child.announcement(time.monotonic() + READY_WITHIN_S)
        except ChildFailed as error:
            child.stop(time.monotonic())
            raise TransferError(f"the tensor server {error}") from error
        return child, WeightSources(server=said.address, token=said.token)


def address_towards(peer: Address) -> str:
    """Our address on the interface that leads to a peer. Sends nothing.

    Raises:
        TransferError: no interface does.

    """
    try:
        family, kind, _, _, there = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(there)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise TransferError(f"no network interface leads to {peer}: {error.strerror or error}") from error
