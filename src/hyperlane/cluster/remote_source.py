"""A `TensorSource` over another machine's tensor server: fetched ahead in parallel, verified, bounded in memory.

Blocking, with threads: it is used by the thread that loads a stage, while the worker's event loop answers Health.
Keeps nothing on disk.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Self, TypeVar

import grpc
import numpy as np
import numpy.typing as npt

from hyperlane.cluster import messages, rpc
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.pb.control_pb2_grpc import TensorsStub
from hyperlane.cluster.trust import grpc_tls
from hyperlane.cluster.trust.trust import Trust
from hyperlane.core import Address
from hyperlane.errors import HyperlaneError, TransferError, WorkerUnreachable
from hyperlane.models.weights import TensorInfo
from hyperlane.wire.peer import NodeRole

PARALLEL = 4
AHEAD_BYTES = 256 << 20
"""Bytes that may be held before they are read; a tensor larger than that is fetched when it is read."""

PASSED_BY = 32
"""Tensors read so far out of the expected order are still in use; those further back were needed by nobody."""

LONGEST_FETCH_S = 3600.0
"""Deadline of one tensor's stream. A peer that is gone is noticed by keep-alive, in seconds."""

TRIES = 6
REPORT_EVERY_S = 0.25

Bytes = npt.NDArray[np.uint8]
T = TypeVar("T")


@dataclass(slots=True)
class _Progress:
    """How many of a tensor's bytes have arrived."""

    done: int = 0


class RemoteSource:
    """The tensors of one model at a tensor server. Every method from any thread. Close it, or use `with`."""

    def __init__(self, address: Address, token: str, fingerprint: str, trust: Trust | None = None) -> None:
        """Connect and ask which tensors there are.

        Args:
            address: the server's.
            token: what it asks for.
            fingerprint: of the model that it must serve.
            trust: this node's, if the server encrypts: it must be the cluster's head.

        Raises:
            TransferError: the server is not there, does not know the token, or serves another model.

        """
        self._address = address
        self._token = token
        self._report: Callable[[int], None] = lambda _fetched: None
        self._channel = grpc_tls.open_channel(address, trust, NodeRole.HEAD)
        self._stub = TensorsStub(self._channel)
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="fetch")
        self._guard = threading.Lock()
        self._expected: list[TensorInfo] = []
        self._at = 0
        self._ahead: dict[str, Future[Bytes]] = {}
        self._held = 0
        self._fetched = 0
        try:
            self._infos = self._list(fingerprint)
        except HyperlaneError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def info(self, name: str) -> TensorInfo | None:
        """As `TensorSource.info`."""
        return self._infos.get(name)

    def names(self) -> Sequence[str]:
        """As `TensorSource.names`."""
        return tuple(self._infos)

    def report_to(self, report: Callable[[int], None]) -> None:
        """Tell `report` the bytes fetched so far while `read` waits; what it raises ends that wait."""
        self._report = report

    def expect(self, names: Sequence[str]) -> None:
        """Say which tensors may be read, in which order: once one was read, those after it are fetched ahead."""
        with self._guard:
            infos = (self._infos[name] for name in dict.fromkeys(names) if name in self._infos)
            self._expected, self._at = list(infos), 0

    def read(self, name: str) -> Bytes:
        """As `TensorSource.read`; bytes that were fetched ahead are handed over and kept no longer.

        Raises:
            TransferError: the bytes did not arrive whole, or not as they were sent.

        """
        info = self._infos.get(name)
        if info is None:
            raise TransferError(f"the model at {self._address} has no tensor '{name}'")
        with self._guard:
            future = self._ahead.get(name) or self._submit(info)
            self._fetch_ahead(info)
        try:
            while not future.done():
                self._report(self._fetched)
                wait((future,), REPORT_EVERY_S)
            return future.result()
        finally:
            with self._guard:
                self._forget(info)
                self._fetch_ahead(info)

    def close(self) -> None:
        """End every fetch and release the connection. Idempotent."""
        self._closed.set()
        self._channel.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    # --- inside ----------------------------------------------------------------------------------------------

    def _fetch_ahead(self, now: TensorInfo) -> None:
        """Fetch what is expected after a tensor, as memory allows; drop what was passed by (it was ready elsewhere)."""
        if now not in self._expected:
            return
        place = self._expected.index(now)
        for info in self._expected[: max(0, place - PASSED_BY)]:
            self._forget(info)
        self._at = max(self._at, place + 1)
        while self._at < len(self._expected) and not self._closed.is_set():
            info = self._expected[self._at]
            if info.nbytes <= AHEAD_BYTES:
                if self._held + info.nbytes > AHEAD_BYTES:
                    return
                if info.name not in self._ahead:
                    self._submit(info)
            self._at += 1

    def _submit(self, info: TensorInfo) -> Future[Bytes]:
        self._held += info.nbytes
        future = self._ahead[info.name] = self._pool.submit(self._fetch, info)
        return future

    def _forget(self, info: TensorInfo) -> None:
        future = self._ahead.pop(info.name, None)
        if future is not None:
            future.cancel()
            self._held -= info.nbytes

    def _list(self, fingerprint: str) -> dict[str, TensorInfo]:
        response = self._repeated(lambda: self._stub.ListTensors(self._request(), timeout=rpc.CALL_TIMEOUT_S))
        if response.fingerprint != fingerprint:
            raise TransferError(
                f"the tensor server at {self._address} serves another model ({response.fingerprint[:12]}… instead of "
                f"{fingerprint[:12]}…): start the head again"
            )
        return {tensor.name: messages.tensor_from(tensor) for tensor in response.tensors}

    def _request(self) -> pb.ListTensorsRequest:
        return pb.ListTensorsRequest(token=self._token)

    def _fetch(self, info: TensorInfo) -> Bytes:
        target, progress = np.empty(info.nbytes, np.uint8), _Progress()
        digest = self._repeated(lambda: self._stream(info, target, progress), progress)
        if hashlib.sha256(target.data).digest() != digest:
            raise TransferError(f"tensor '{info.name}' from {self._address} is not what was sent: its hash differs")
        return target

    def _stream(self, info: TensorInfo, target: Bytes, progress: _Progress) -> bytes:
        """Receive from where an earlier try ended; the tensor's SHA-256."""
        request = pb.FetchTensorRequest(token=self._token, name=info.name, offset=progress.done)
        for chunk in self._stub.FetchTensor(request, timeout=LONGEST_FETCH_S):
            end = progress.done + len(chunk.data)
            if chunk.total != info.nbytes or chunk.offset != progress.done or end > info.nbytes:
                raise TransferError(f"tensor '{info.name}' from {self._address}: chunks out of order or too long")
            target[progress.done : end] = np.frombuffer(chunk.data, np.uint8)
            progress.done = end
            with self._guard:
                self._fetched += len(chunk.data)
            if chunk.sha256 and end == info.nbytes:
                return bytes(chunk.sha256)
        raise TransferError(f"tensor '{info.name}' from {self._address} ended before its last byte")

    def _repeated(self, call: Callable[[], T], progress: _Progress | None = None) -> T:
        """Try again while the server cannot be reached; a try that brought bytes starts the count anew."""
        progress = progress or _Progress()
        while True:
            before = progress.done
            for pause_s in (*rpc.pauses(TRIES - 1, random.Random()), None):
                try:
                    return call()
                except grpc.RpcError as error:
                    ours = rpc.our_error(error, self._address, "the tensor server", None)
                if self._closed.is_set():
                    raise TransferError("the transfer was given up")
                if not isinstance(ours, WorkerUnreachable) or pause_s is None:
                    raise TransferError(str(ours)) from ours
                self._closed.wait(pause_s)
                if progress.done > before:
                    break
