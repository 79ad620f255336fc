"""The head's side of one worker's control port: every call with a deadline, the safe ones repeated.

Knows no plan: `controller` decides what is asked of whom.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from hyperlane.cluster import messages, rpc
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.pb.control_pb2_grpc import WorkerStub
from hyperlane.core import Address, ElementType, HeadId, WorkerFacts
from hyperlane.errors import LoadFailed, WorkerUnreachable
from hyperlane.stage.orders import HostHealth, LoadOrder, LoadProgress, StageKey

CONNECT_TIMEOUT_S = 15.0
"""A worker dials the next one with a time-out of its own, which must end first."""


@dataclass(frozen=True, slots=True)
class Described:
    """A worker's facts, and whether it can open the model that was asked about."""

    facts: WorkerFacts
    holds_model: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a worker says of a stage that is ready: its element type and the bytes it really took."""

    element: ElementType
    private_bytes: int


class WorkerClient:
    """One worker. Lives in one event loop; every method raises ClusterError's children, `close` nothing."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.name = "the worker"
        self._channel = grpc.aio.insecure_channel(rpc.target(address), options=rpc.CHANNEL_OPTIONS)
        self._stub = WorkerStub(self._channel)

    async def describe(self, fingerprint: str = "", path_hint: str = "", timeout_s: float = 10.0) -> Described:
        """Ask what the worker is, until it answers or `timeout_s` is over.

        Raises:
            WorkerUnreachable: nothing answers.
            VersionMismatch: it speaks another protocol.

        """
        request = pb.DescribeRequest(version=messages.own_version(), fingerprint=fingerprint, path_hint=path_hint)
        response = await self._safely(self._stub.Describe, request, timeout_s)
        messages.check_version(response.version, f"the worker at {self.address}")
        self.name = f"worker {response.name}"
        with rpc.mapped(self.address, self.name):
            return Described(messages.describe_from(response, self.address), response.holds_model)

    async def load(self, order: LoadOrder, progress: Callable[[LoadProgress], None], timeout_s: float) -> Loaded:
        """Load a stage. Cancelling this coroutine cancels the load.

        Raises:
            WorkerBusy, VersionMismatch, DoesNotFit, LoadFailed, ModelError: what the worker says.
            LoadFailed: the worker died meanwhile, or the load took longer than `timeout_s`.
            WorkerUnreachable: nothing answered at all.

        """
        began, loaded = False, None
        call = self._stub.Load(messages.load_to(order), timeout=timeout_s)
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

    async def connect(self, key: StageKey, next_data: Address) -> None:
        """Make the worker dial the next stage."""
        request = pb.ConnectRequest(
            epoch=messages.epoch_to(key.epoch), index=key.index, next=messages.address_to(next_data)
        )
        with rpc.mapped(self.address, self.name, CONNECT_TIMEOUT_S):
            await self._stub.Connect(request, timeout=CONNECT_TIMEOUT_S)

    async def unload(self, head: HeadId, key: StageKey | None = None) -> int:
        """Drop one stage, or all of the head's with its lease; returns how many there were."""
        request = messages.unload_to(head, key)
        with rpc.mapped(self.address, self.name, rpc.CALL_TIMEOUT_S):
            response = await self._stub.Unload(request, timeout=rpc.CALL_TIMEOUT_S)
        return int(response.dropped)

    async def drain(self) -> int:
        """Make the worker take no further stage; returns how many it has."""
        response = await self._safely(self._stub.Drain, pb.DrainRequest(), rpc.CALL_TIMEOUT_S)
        return int(response.stages)

    async def health(self, head: HeadId, timeout_s: float = rpc.CALL_TIMEOUT_S, tries: int = 2) -> HostHealth:
        """Renew the head's lease and learn how its stages are."""
        request = pb.HealthRequest(head=head)
        response = await self._safely(self._stub.Health, request, timeout_s, tries)
        with rpc.mapped(self.address, self.name):
            return messages.health_from(response, head)

    async def close(self) -> None:
        """Release the channel. Idempotent."""
        await self._channel.close()

    async def _safely(self, method: Any, request: object, budget_s: float, tries: int = rpc.TRIES) -> Any:  # noqa: ANN401 (generated stubs are untyped)
        async def once(timeout_s: float) -> Any:  # noqa: ANN401
            with rpc.mapped(self.address, self.name, budget_s):
                return await method(request, timeout=timeout_s)

        return await rpc.retried(once, budget_s, tries)
