"""The worker's side of the control port: requests → StageHost → responses. Holds no state of its own.

Knows no engine: what a worker is and holds comes through callables, stages through the host.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from hyperlane.cluster import address_messages, messages, rpc
from hyperlane.cluster.cost import kv_bytes
from hyperlane.cluster.link_dialler import LinkDialler
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.pb.control_pb2_grpc import add_WorkerServicer_to_server
from hyperlane.cluster.profile.profiler import Profiler
from hyperlane.cluster.profile.service import ProfileService
from hyperlane.cluster.trust import grpc_tls
from hyperlane.cluster.trust.worker_trust import WorkerTrust
from hyperlane.core import Address, NodeId, WorkerFacts
from hyperlane.errors import ClusterError, ConfigError, HyperlaneError, LinkError
from hyperlane.stage.host import StageHost
from hyperlane.stage.orders import LoadOrder, LoadProgress, StageKey
from hyperlane.stage.stage import Stage

log = logging.getLogger(__name__)

SERVICE = "hyperlane.v1.Worker"
EXPIRY_CHECK_S = 1.0
ALLOWED = {"/hyperlane.v1.Worker/": grpc_tls.HEAD_ALONE, "/grpc.health.v1.Health/": grpc_tls.ALL_MEMBERS}
"""Who may call what on an encrypted control port."""

GRACE_S = 1.0
"""How long calls in progress may go on when the server stops."""

Context: TypeAlias = Any
"""A grpc.aio.ServicerContext; grpc has no types."""


@dataclass(frozen=True, slots=True)
class WorkerFace:
    """What a worker says of itself. `facts` measures anew; `holds_model(fingerprint, path)` looks at the file.

    `profiler`: what steps cost here; None: that cannot be measured.
    `share_port`: where it serves tensors to other workers, 0 for nowhere; it may start a server.
    """

    facts: Callable[[], WorkerFacts]
    holds_model: Callable[[str, str], bool]
    profiler: Profiler | None = None
    share_port: Callable[[], int] = int


class WorkerService:
    """The calls of `hyperlane.v1.Worker`, as the generated server wants them."""

    def __init__(self, host: StageHost, face: WorkerFace, trust: WorkerTrust | None) -> None:
        self._host = host
        self._face = face
        self._trust = trust
        self._dialler = LinkDialler(trust)
        self._profile = ProfileService(host, face.profiler, self._dialler)

    async def Describe(self, request: Any, _context: Context) -> Any:  # noqa: N802, ANN401 (named by the proto; generated messages are untyped)
        """Any version is answered: the caller finds out from the answer that it is another one."""
        facts = await asyncio.to_thread(self._face.facts)
        holds, share_port = False, 0
        if request.fingerprint:
            holds = await asyncio.to_thread(self._face.holds_model, request.fingerprint, request.path_hint)
        if request.fingerprint and not holds:
            share_port = await asyncio.to_thread(self._face.share_port)
        return messages.describe_to(facts, holds_model=holds, share_port=share_port)

    async def Load(self, request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: N802, ANN401
        """Progress, then ready. The engine is built in a thread; when the call ends early the load is given up."""
        async with rpc.refusals(context):
            messages.check_version(request.version, "the head")
            order = _counted(messages.load_from(request, self._heard(context, request.revoked)))
            # When the call ends while a message is being sent, grpc drops this generator without closing it.
            context.add_done_callback(lambda _context: self._host.cancel(order.key, "the head's call ended"))
            async for response in self._load(order):
                yield response

    async def _load(self, order: LoadOrder) -> AsyncIterator[Any]:
        reports: asyncio.Queue[LoadProgress | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def report(progress: LoadProgress) -> None:
            loop.call_soon_threadsafe(reports.put_nowait, progress)

        def build() -> Stage:
            try:
                return self._host.load(order, report)
            finally:
                loop.call_soon_threadsafe(reports.put_nowait, None)

        building = asyncio.create_task(asyncio.to_thread(build))
        try:
            # The first answer tells the head that the worker was there, should it be lost later.
            yield messages.progress_to(LoadProgress("starting"))
            while (progress := await reports.get()) is not None:
                yield messages.progress_to(progress)
            stage = await building
            yield messages.ready_to(stage.engine.element, stage.engine.private_bytes)
        except (asyncio.CancelledError, GeneratorExit):
            await self._give_up(order, building)
            raise

    async def _give_up(self, order: LoadOrder, building: asyncio.Task[Stage]) -> None:
        log.info("the head gave up loading %s", order.key)
        self._host.cancel(order.key, "the head's call ended")
        with suppress(HyperlaneError):
            await asyncio.shield(building)
            # It was ready just before it was given up.
            await asyncio.to_thread(self._host.unload, order.spec.epoch.head, order.key)

    async def Connect(self, request: Any, context: Context) -> Any:  # noqa: N802, ANN401
        async with rpc.refusals(context):
            key = StageKey(messages.epoch_from(request.epoch), request.index)
            address = address_messages.address_from(request.next)
            try:
                node = address_messages.node_from(request.next_node)
                await asyncio.to_thread(self._host.connect, key, address, self._dialler.to(node) if node else None)
            except LinkError as error:
                raise ClusterError(f"{key} cannot reach the next stage at {address}: {error}") from error
            return pb.ConnectResponse()

    async def Unload(self, request: Any, context: Context) -> Any:  # noqa: N802, ANN401
        async with rpc.refusals(context):
            head, key = messages.unload_from(request)
            return pb.UnloadResponse(dropped=await asyncio.to_thread(self._host.unload, head, key))

    async def Drain(self, _request: Any, _context: Context) -> Any:  # noqa: N802, ANN401
        return pb.DrainResponse(stages=self._host.drain())

    async def Health(self, request: Any, context: Context) -> Any:  # noqa: N802, ANN401
        async with rpc.refusals(context):
            self._heard(context, request.revoked)
            return messages.health_to(self._host.renew(messages.head_from(request.head)))

    async def Profile(self, request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: N802, ANN401
        """See `ProfileService.profile`."""
        async with rpc.refusals(context):
            messages.check_version(request.version, "the head")
            self._heard(context, request.revoked)
            async with aclosing(self._profile.profile(request)) as responses:
                async for response in responses:
                    yield response

    async def MeasurePath(self, request: Any, context: Context) -> Any:  # noqa: N802, ANN401
        """See `ProfileService.paths`."""
        async with rpc.refusals(context):
            self._heard(context, request.revoked)
            return await self._profile.paths(request)

    def _heard(self, context: Context, revoked: Any) -> NodeId | None:  # noqa: ANN401
        """Who calls, and what they say was taken back; None on a plain connection, which comes from this machine."""
        if self._trust is None:
            return None
        self._trust.tell_revoked(messages.revoked_from(revoked))
        peer = grpc_tls.caller(context)
        return peer.name.node if peer else None


def _counted(order: LoadOrder) -> LoadOrder:
    """The order with a KV arena no smaller than its spec makes it, whatever the head counted."""
    spec = order.spec
    arena = len(spec.layers) * kv_bytes(spec.model, spec.slots, spec.context)
    return replace(order, kv_bytes=max(order.kv_bytes, arena))


class WorkerServer:
    """The control port: Worker and the standard health service, and the clock of the lease."""

    def __init__(self, host: StageHost, face: WorkerFace, trust: WorkerTrust | None = None) -> None:
        """With `trust` every call needs a certificate of its cluster; without, the port is for this machine alone."""
        self._host = host
        self._credentials = grpc_tls.server_credentials(trust) if trust else None
        self._server = grpc.aio.server(
            interceptors=[grpc_tls.Gate(trust.check, ALLOWED)] if trust else [],
            options=(*rpc.SERVER_OPTIONS, *grpc_tls.SERVER_OPTIONS),
            maximum_concurrent_rpcs=256,
        )
        self._health = health.aio.HealthServicer()
        add_WorkerServicer_to_server(WorkerService(host, face, trust), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._expiry: asyncio.Task[None] | None = None

    async def start(self, address: Address) -> Address:
        """Listen; returns the address with the port that was chosen.

        Raises:
            ConfigError: the port is in use, or the address is not this machine's.

        """
        try:
            port = grpc_tls.add_port(self._server, rpc.target(address), self._credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {address}: the port is in use or the address is not this machine's; choose another "
                "with --listen HOST:PORT (port 0 takes any free one)"
            ) from error
        await self._server.start()
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._expiry = asyncio.create_task(self._expire())
        return Address(address.host, port)

    async def stop(self) -> None:
        """Say NOT_SERVING, let calls in progress end for a moment, stop listening. Idempotent."""
        if self._expiry is not None:
            self._expiry.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(GRACE_S)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_CHECK_S)
            await asyncio.to_thread(self._host.expire)
