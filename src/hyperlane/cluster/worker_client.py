"""The head's side of one worker's control port: every call with a deadline, the safe ones repeated.

Knows no plan: `controller` decides what is asked of whom.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from hyperlane.cluster import address_messages, messages, rpc
from hyperlane.cluster.machine import is_loopback
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.pb.control_pb2_grpc import WorkerStub
from hyperlane.cluster.profile import messages as profile_messages
from hyperlane.cluster.profile.messages import PathOrder, PathResult
from hyperlane.cluster.profile.shape import DeviceProfile, ProfileShape
from hyperlane.cluster.trust import grpc_tls, preflight
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.core import Address, ElementType, HeadId, NodeId, WorkerFacts
from hyperlane.errors import LoadFailed, NotTrusted, WorkerUnreachable
from hyperlane.stage.orders import HostHealth, LoadOrder, LoadProgress, StageKey
from hyperlane.wire.peer import NodeRole, Peer
from hyperlane.wire.tls import ClientTls

CONNECT_TIMEOUT_S = 15.0
"""A worker dials the next one with a time-out of its own, which must end first."""


@dataclass(frozen=True, slots=True)
class Described:
    """A worker's facts, whether it can open the model that was asked about, and where it serves tensors (None: no)."""

    facts: WorkerFacts
    holds_model: bool
    share: Address | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a worker says of a stage that is ready: its element type and the bytes it really took."""

    element: ElementType
    private_bytes: int


class WorkerClient:
    """One worker. Lives in one event loop; every method raises ClusterError's children, `close` nothing.

    The first call finds out who answers: a worker on another machine must show a certificate of this head's cluster,
    and from then on nobody else is spoken to; on loopback it may also speak plain text.
    """

    def __init__(self, address: Address, trust: HeadTrust | None = None) -> None:
        """`trust` None: this head has no cluster, and its workers are those of this machine."""
        self.address = address
        self.name = "the worker"
        self.peer: Peer | None = None
        self._trust = trust
        self._channel: Any = None
        self._stub: Any = None
        if trust is None and is_loopback(address.host):
            self._open_plain()

    async def describe(
        self, fingerprint: str = "", path_hint: str = "", timeout_s: float = 10.0, tries: int = rpc.TRIES
    ) -> Described:
        """Ask what the worker is, until it answers or `timeout_s` is over.

        Raises:
            WorkerUnreachable: nothing answers.
            VersionMismatch: it speaks another protocol.

        """
        request = pb.DescribeRequest(version=messages.own_version(), fingerprint=fingerprint, path_hint=path_hint)
        response = await self._safely("Describe", request, timeout_s, tries)
        messages.check_version(response.version, f"the worker at {self.address}")
        self.name = f"worker {response.name}"
        with rpc.mapped(self.address, self.name):
            facts = messages.describe_from(response, self.address)
            share = Address(self.address.host, response.share_port) if response.share_port else None
            return Described(facts, response.holds_model, share)

    async def load(self, order: LoadOrder, progress: Callable[[LoadProgress], None], timeout_s: float) -> Loaded:
        """Load a stage. Cancelling this coroutine cancels the load.

        Raises:
            WorkerBusy, VersionMismatch, DoesNotFit, LoadFailed, ModelError: what the worker says.
            LoadFailed: the worker died meanwhile, or the load took longer than `timeout_s`.
            WorkerUnreachable: nothing answered at all.

        """
        began, loaded = False, None
        await self._reach(timeout_s)
        call = self._stub.Load(messages.load_to(order, self._revoked()), timeout=timeout_s)
        try:
            with rpc.mapped(self.address, self.name, timeout_s):
                async for response in call:
                    began = True
                    # Read to the end: a call that is left before counts as given up.
                    if response.WhichOneof("event") == "ready":
                        loaded = Loaded(messages.element_from(response.ready.element), response.ready.private_bytes)
                    else:
                        progress(messages.progress_from(response.progress))
        except WorkerUnreachable as error:
            if not began:
                raise
            raise LoadFailed(f"{self.name} at {self.address} was lost while loading {order.key}: {error}") from error
        except asyncio.CancelledError:
            call.cancel()  # grpc does not, when this coroutine is cancelled before the first answer
            raise
        if loaded is None:
            raise LoadFailed(f"{self.name} at {self.address} ended the load of {order.key} without a result")
        return loaded

    async def connect(self, key: StageKey, next_data: Address, next_node: NodeId | None = None) -> None:
        """Make the worker dial the next stage. `next_node`: whom it must find there; None for a plain link."""
        request = pb.ConnectRequest(
            epoch=messages.epoch_to(key.epoch),
            index=key.index,
            next=address_messages.address_to(next_data),
            next_node=next_node or b"",
        )
        await self._reach(CONNECT_TIMEOUT_S)
        with rpc.mapped(self.address, self.name, CONNECT_TIMEOUT_S):
            await self._stub.Connect(request, timeout=CONNECT_TIMEOUT_S)

    async def profile(
        self, shape: ProfileShape, progress: Callable[[LoadProgress], None], timeout_s: float, *, again: bool = False
    ) -> DeviceProfile:
        """What steps of a model's shape cost on the worker's device. Cancelling this coroutine ends the measurement.

        Raises:
            WorkerBusy: it runs stages, and has never measured this shape.
            VersionMismatch, DoesNotFit, LoadFailed, UnsupportedModel: what the worker says.

        """
        found = None
        await self._reach(timeout_s)
        call = self._stub.Profile(profile_messages.profile_to(shape, self._revoked(), again=again), timeout=timeout_s)
        try:
            with rpc.mapped(self.address, self.name, timeout_s):
                async for response in call:
                    if response.WhichOneof("event") == "profile":
                        found = profile_messages.device_from(response.profile)
                    else:
                        progress(messages.progress_from(response.progress))
        except asyncio.CancelledError:
            call.cancel()
            raise
        if found is None:
            raise LoadFailed(f"{self.name} at {self.address} ended its measurement without a result")
        return found

    async def measure_path(self, order: PathOrder, timeout_s: float) -> tuple[PathResult, ...]:
        """What the path from the worker to another one costs, at each of its addresses.

        Raises:
            WorkerUnreachable: this worker cannot be asked; that the other one is not reached is part of the answer.

        """
        request = profile_messages.path_to(order, self._revoked())
        response = await self._safely("MeasurePath", request, timeout_s, 1)
        with rpc.mapped(self.address, self.name):
            return profile_messages.results_from(response)

    async def unload(self, head: HeadId, key: StageKey | None = None) -> int:
        """Drop one stage, or all of the head's with its lease; returns how many there were."""
        if self._stub is None:
            return 0  # it was never reached, so nothing was ever loaded
        request = messages.unload_to(head, key)
        with rpc.mapped(self.address, self.name, rpc.CALL_TIMEOUT_S):
            response = await self._stub.Unload(request, timeout=rpc.CALL_TIMEOUT_S)
        return int(response.dropped)

    async def drain(self) -> int:
        """Make the worker take no further stage; returns how many it has."""
        response = await self._safely("Drain", pb.DrainRequest(), rpc.CALL_TIMEOUT_S)
        return int(response.stages)

    async def health(self, head: HeadId, timeout_s: float = rpc.CALL_TIMEOUT_S, tries: int = 2) -> HostHealth:
        """Renew the head's lease and learn how its stages are."""
        if self.peer is not None and self._trust is not None:
            self._trust.check(self.peer)
        request = pb.HealthRequest(head=head, revoked=messages.revoked_to(self._revoked()))
        response = await self._safely("Health", request, timeout_s, tries)
        with rpc.mapped(self.address, self.name):
            return messages.health_from(response, head)

    async def close(self) -> None:
        """Release the channel. Idempotent."""
        if self._channel is not None:
            await self._channel.close()

    @property
    def node(self) -> NodeId | None:
        """Whom its certificate names; None for a worker of this machine that speaks plain text."""
        return self.peer.name.node if self.peer is not None else None

    def link_tls(self) -> ClientTls | None:
        """How to dial its data port; None: in plain text."""
        if self.peer is None or self._trust is None:
            return None
        return self._trust.credentials.client_tls(NodeRole.WORKER, self.peer.name.node, self._trust.check)

    # --- who it is -------------------------------------------------------------------------------------------

    async def _reach(self, timeout_s: float) -> None:
        """Find out once who answers, and open the channel that fits.

        Raises:
            WorkerUnreachable: nothing answers.
            NotTrusted: it is no worker of this cluster.

        """
        if self._stub is not None:
            return
        if self._trust is None:
            raise NotTrusted(
                f"{self.address} is on another machine, and this one has no cluster yet: `hyperlane serve MODEL` makes "
                "one and prints the token with which workers join"
            )
        look = asyncio.to_thread(preflight.identify, self.address, self._trust, NodeRole.WORKER, timeout_s)
        try:
            peer = await look
        except preflight.SpeaksNoTls:
            if not is_loopback(self.address.host):
                raise
            self._open_plain()
            return
        credentials = self._trust.credentials
        self._channel = grpc.aio.secure_channel(
            rpc.target(self.address),
            grpc_tls.channel_credentials(credentials),
            options=grpc_tls.channel_options(credentials, NodeRole.WORKER, peer.name.node),
        )
        self._stub, self.peer = WorkerStub(self._channel), peer

    def _open_plain(self) -> None:
        self._channel = grpc.aio.insecure_channel(rpc.target(self.address), options=rpc.CHANNEL_OPTIONS)
        self._stub = WorkerStub(self._channel)

    def _revoked(self) -> frozenset[int]:
        return self._trust.members.revoked() if self._trust is not None else frozenset()

    async def _safely(self, method: str, request: object, budget_s: float, tries: int = rpc.TRIES) -> Any:  # noqa: ANN401 (generated stubs are untyped)
        async def once(timeout_s: float) -> Any:  # noqa: ANN401
            await self._reach(timeout_s)
            with rpc.mapped(self.address, self.name, budget_s):
                return await getattr(self._stub, method)(request, timeout=timeout_s)

        return await rpc.retried(once, budget_s, tries)
