"""Where workers get a model's weights from, as the head tells them: their copy of the file, peers, a server, the hub.

The head's tensor server is a child process: started when a worker lacks the model's file, stopped after loading.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from hyperlane.cluster.announce import STOP_WITHIN_S, Child, ChildFailed
from hyperlane.cluster.layers.share import MODULE
from hyperlane.cluster.machine import is_loopback
from hyperlane.cluster.trust import old_tls
from hyperlane.cluster.weights import stage_tensors
from hyperlane.cluster.worker_client import Described, WorkerClient
from hyperlane.core import Address, StageSpec
from hyperlane.errors import HyperlaneError, TransferError
from hyperlane.models.ranges import TensorPlace, TensorPlaces
from hyperlane.stage.orders import TensorPeer, WeightSources

log = logging.getLogger(__name__)

READY_WITHIN_S = 60.0
OTHERS_TIMEOUT_S = 3.0
"""How long workers that are not in a plan may take to say whether they have tensors for those that are."""


class WeightSupply:
    """Where workers get the weights of one model from. One server for each of our addresses they reach us at."""

    def __init__(
        self, file: Path | None, places: TensorPlaces, fingerprint: str, logs: Path, trust: Path | None = None
    ) -> None:
        """Nothing is started yet.

        Args:
            file: the model's, None when it is not on this machine.
            places: where its tensors lie.
            fingerprint: the model's.
            logs: folder of the servers' logs.
            trust: the head's folder of that name, for servers that encrypt.

        """
        self.file = file
        self._places = places
        self._asked: dict[WorkerClient, Described | HyperlaneError] = {}
        self._fingerprint = fingerprint
        self._logs = logs
        self._trust = trust
        self._servers: dict[tuple[str, bool], tuple[Child, WeightSources]] = {}
        self._starting = asyncio.Lock()

    async def look_around(
        self, loading: Collection[WorkerClient], everybody: Iterable[WorkerClient], timeout_s: float
    ) -> None:
        """Ask workers whether they have the file and where they serve tensors, once; before `sources`.

        Those that are to load are asked with patience: they may have to hash a copy of the file. Others may have
        tensors all the same. Who fails is told so by `sources`.
        """
        clients = list(everybody)
        hint = str(self.file or "")
        calls = (
            client.describe(self._fingerprint, hint, timeout_s if client in loading else OTHERS_TIMEOUT_S)
            for client in clients
        )
        for client, answer in zip(clients, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if not isinstance(answer, Described | HyperlaneError):
                raise answer
            self._asked[client] = answer

    async def sources(self, worker: WorkerClient, spec: StageSpec, *, encrypted: bool) -> WeightSources:
        """What to tell a worker that was asked: the file's place if it has it, else everybody who may have tensors.

        `encrypted`: it speaks TLS.

        Raises:
            ClusterError: the worker did not answer when it was asked.
            TransferError: the server does not come up.

        """
        asked = self._asked[worker]
        if isinstance(asked, HyperlaneError):
            raise asked
        if asked.holds_model:
            return WeightSources(path_hint=str(self.file))
        found = WeightSources()
        if self.file is not None:
            async with self._starting:
                key = (await asyncio.to_thread(address_towards, worker.address), encrypted)
                if key not in self._servers:
                    self._servers[key] = await asyncio.to_thread(self._start, *key)
                found = self._servers[key][1]
        tensors = await asyncio.to_thread(tensors_of, spec, self._places)
        return replace(found, tensors=tensors, peers=self._peers(worker), files=tuple(self._places.remote_files))

    async def close(self) -> None:
        """Stop the servers. Idempotent."""
        servers, self._servers = list(self._servers.values()), {}
        for child, _ in servers:
            await asyncio.to_thread(child.stop, time.monotonic() + STOP_WITHIN_S)

    def _peers(self, worker: WorkerClient) -> tuple[TensorPeer, ...]:
        """The other workers that serve tensors, where this one reaches them; encrypted ones by encrypted ones alone."""
        return tuple(
            TensorPeer(reached_from(worker.address, said.share), other.node)
            for other, said in self._asked.items()
            if isinstance(said, Described) and said.share is not None
            if other is not worker and (other.node is None) == (worker.node is None)
        )

    def _start(self, host: str, encrypted: bool) -> tuple[Child, WeightSources]:
        command = [sys.executable, "-m", MODULE, "file", str(self.file), "--fingerprint", self._fingerprint]
        command += ["--listen", str(Address(host, 0))]
        if encrypted:
            command += ["--trust", str(self._trust)]
        log = self._logs / f"tensors-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{len(self._servers)}.log"
        child = Child(command, log, {**os.environ, **old_tls.VARIABLES})
        try:
            said = child.announcement(time.monotonic() + READY_WITHIN_S)
        except ChildFailed as error:
            child.stop(time.monotonic())
            raise TransferError(f"the tensor server {error}") from error
        return child, WeightSources(server=said.address, token=said.token)


def tensors_of(spec: StageSpec, places: TensorPlaces) -> tuple[TensorPlace, ...]:
    """The tensors that a stage needs, each once. May read the model's file, to hash them once."""
    found = (places.place(name) for name in dict.fromkeys(stage_tensors(spec)))
    return tuple(place for place in found if place is not None)


def reached_from(dialler: Address, target: Address) -> Address:
    """Where a worker finds another one's port: what is loopback to the head is its address on their network."""
    if is_loopback(target.host) and not is_loopback(dialler.host):
        return Address(address_towards(dialler), target.port)
    return target


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
