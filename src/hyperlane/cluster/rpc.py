"""How the control plane calls: channel options, deadlines, retries, and the one place where gRPC errors become ours.

Knows no service and no message.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio

from hyperlane import errors
from hyperlane.core import Address

ERROR_KEY = "hyperlane-error"
"""Trailing metadata: the name of the class in `hyperlane.errors` that a refused call raises at the caller."""

MAX_MESSAGE_BYTES = 8 << 20
"""The largest control message. Tensors travel in chunks well below it, lists of tensors reach about one MiB."""

CALL_TIMEOUT_S = 5.0
"""Deadline of calls that only ask or tell; loads, connects and transfers state their own."""

TRIES = 4
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

T = TypeVar("T")

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
CHANNEL_OPTIONS = (
    *_OPTIONS,
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # One try to connect, too: with gRPC's 20 s a worker whose cable is plugged in again would be met that much later.
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A proxy of the environment has no business between machines of one LAN.
    ("grpc.enable_http_proxy", 0),
    # Two heads of one process (tests, notebooks) must not share a connection that one of them closes.
    ("grpc.use_local_subchannel_pool", 1),
)
SERVER_OPTIONS = (
    *_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)

_CODES = (
    (errors.UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.ProtocolError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.TransferError, grpc.StatusCode.DATA_LOSS),
    (errors.EngineFault, grpc.StatusCode.INTERNAL),
    (errors.HyperlaneError, grpc.StatusCode.FAILED_PRECONDITION),
)


def target(address: Address) -> str:
    """What gRPC calls an address."""
    return str(address)


# --- a server's errors ---------------------------------------------------------------------------------------


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: errors.HyperlaneError) -> NoReturn:
    """End a call with one of our errors; the caller raises the same class with the same message."""
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    await context.abort(code, str(error), ((ERROR_KEY, type(error).__name__),))
    raise AssertionError("abort always raises")


@asynccontextmanager
async def refusals(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Refuse the call with whatever error of ours the block raises."""
    try:
        yield
    except errors.HyperlaneError as error:
        await refuse(context, error)


# --- a caller's errors ---------------------------------------------------------------------------------------


@contextmanager
def mapped(address: Address, who: str, timeout_s: float | None = None) -> Iterator[None]:
    """Raise gRPC errors of the block as ours, cause chained. `who` names the peer for people.

    Raises:
        WorkerUnreachable: nothing answers there, or not in time.
        VersionMismatch: the peer does not know the call.
        ClusterError: its answer makes no sense.
        HyperlaneError: the class that the peer named.

    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise our_error(error, address, who, timeout_s) from error
    except errors.ProtocolError as error:
        raise errors.ClusterError(f"{who} at {address} answered nonsense: {error}") from error


def our_error(error: Any, address: Address, who: str, timeout_s: float | None) -> errors.HyperlaneError:  # noqa: ANN401 (aio and sync gRPC errors share no type)
    """What a gRPC error means."""
    code, details = error.code(), error.details() or ""
    name = dict(error.trailing_metadata() or ()).get(ERROR_KEY)
    named = getattr(errors, str(name), None) if name else None
    if isinstance(named, type) and issubclass(named, errors.HyperlaneError):
        return named(details)
    if code is grpc.StatusCode.UNAVAILABLE:
        return errors.WorkerUnreachable(
            f"{who} does not answer at {address}: {details or 'no connection'}; check that it runs, that the "
            "address and port are right, and that no firewall is in between"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        waited = f" within {timeout_s:g} s" if timeout_s else ""
        return errors.WorkerUnreachable(
            f"{who} at {address} did not answer{waited}; check that it is not overloaded or suspended, and the network"
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.VersionMismatch(
            f"{who} at {address} does not know this call ({details}); what listens there is no Hyperlane worker, or "
            "one of another version: update the older of the two"
        )
    return errors.ClusterError(f"{who} at {address} failed: {details or code.name}")


async def retried(
    call: Callable[[float], Awaitable[T]], budget_s: float, tries: int = TRIES, rng: random.Random | None = None
) -> T:
    """Repeat a call that is safe to repeat while its peer is unreachable; the pauses grow, with jitter.

    `call` is given its deadline in seconds: what is left of the budget, which all tries and pauses share.

    Raises:
        WorkerUnreachable: the last try's.

    """
    jitter = rng or random.Random()
    end_s = time.monotonic() + budget_s
    for pause_s in pauses(tries - 1, jitter):
        try:
            return await call(end_s - time.monotonic())
        except errors.WorkerUnreachable:
            if time.monotonic() + pause_s >= end_s:
                raise
            await asyncio.sleep(pause_s)
    return await call(end_s - time.monotonic())


def pauses(count: int, rng: random.Random) -> Sequence[float]:
    """Seconds before each retry: doubling up to a limit, each drawn from the upper half of its span."""
    spans = (min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**i) for i in range(count))
    return [span * rng.uniform(0.5, 1.0) for span in spans]
