"""The listening socket, and the server that runs an application on it until a signal or `stop`.

Owns signals while it runs. Knows no route.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI

from hyperlane.api.edge import Edge
from hyperlane.config import ApiConfig
from hyperlane.core import Address
from hyperlane.errors import ConfigError

BACKLOG = 1024
KEEP_ALIVE_S = 75
"""Idle connections stay longer than in clients' pools, so that a client never writes to one that is being closed."""

LAST_WORDS_S = 1.0
"""Time for clients to read the error that ended their answer, seconds."""

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind_socket(host: str, port: int) -> socket.socket:
    """Take the address, before anything slow is done; clients that connect wait until the server runs.

    `port` 0 takes any free one.

    Raises:
        ConfigError: the address is in use, not of this machine, or not allowed; the message says what to do.

    """
    family, address = _resolve(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Only a listening socket keeps the port: two that are merely bound with SO_REUSEADDR may share it.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_why_not(error, Address(host, port))) from error
    return listener


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"the address to listen on, '{host}', cannot be resolved: {error}") from error
    # 127.0.0.1 before ::1 for 'localhost': it is what most clients try first
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, cast(tuple[str, int], address)


def _why_not(error: OSError, address: Address) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"{address} is in use by another program; choose another port with --port, or --port 0 for any free one"
            )
        case errno.EADDRNOTAVAIL:
            return f"this machine has no address {address.host}; 127.0.0.1 is itself alone, 0.0.0.0 all its networks"
        case errno.EACCES:
            return f"this user may not listen on {address}; ports below 1024 need more rights, choose a higher one"
    return f"cannot listen on {address}: {error}"


class HttpServer:
    """Serves an application of `create_app` on a bound socket, once.

    `run` blocks and answers SIGINT and SIGTERM; `start` and `stop` serve from a thread of their own. When it is told
    to stop, running answers may end within `config.drain_s`, then they are ended with an error; a second signal
    does not wait. The socket is closed in the end.
    """

    def __init__(self, app: FastAPI, listener: socket.socket, config: ApiConfig) -> None:
        edge = cast(Edge, app.state.edge)
        host, port = listener.getsockname()[:2]
        self.address = Address(host, port)
        self._listener = listener
        self._uvicorn = _Uvicorn(app, edge, config)
        self._thread = threading.Thread(target=self.run, name="hyperlane-http", daemon=True)

    @property
    def url(self) -> str:
        """The base URL that clients of this machine use."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address.host, self.address.host)  # noqa: S104
        return f"http://{Address(host, self.address.port)}"

    def run(self) -> signal.Signals | None:
        """Serve until a signal comes, which is returned, or `stop` is called."""
        try:
            self._uvicorn.run(sockets=[self._listener])
        finally:
            self._listener.close()
            self._uvicorn.answering.set()  # whoever waits in `start` must not wait for a server that failed
        return self._uvicorn.stopped_by

    def start(self) -> None:
        """Serve from a thread; returns when requests are answered."""
        self._thread.start()
        self._uvicorn.answering.wait()

    def stop(self) -> None:
        """Stop, and wait for the thread of `start` if there is one. From any thread, idempotent."""
        self._uvicorn.should_exit = True
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()


class _Uvicorn(uvicorn.Server):
    """Uvicorn with our manner of stopping: signals end `run` instead of being raised again after it."""

    def __init__(self, app: FastAPI, edge: Edge, config: ApiConfig) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                log_level=logging.INFO if config.access_log else logging.WARNING,
                access_log=config.access_log,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                backlog=BACKLOG,
            )
        )
        if config.access_log:
            _write_access_log()
        self.answering = threading.Event()
        self.stopped_by: signal.Signals | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._edge = edge
        self._drain_s = config.drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.answering.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if running := self._edge.running:
            log.warning("%d answer(s) may take %g s to end; a second signal does not wait", running, self._drain_s)
        loop = asyncio.get_running_loop()
        timers = [
            loop.call_later(self._drain_s, self._edge.close),
            loop.call_later(self._drain_s + LAST_WORDS_S, self._hang_up),
        ]
        await super().shutdown(sockets)
        for timer in timers:
            timer.cancel()

    def _hang_up(self) -> None:
        """End every answer and close its connection, whether its client reads or not."""
        self._edge.close()
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal, at once at the second."""
        self.stopped_by = self.stopped_by or signal.Signals(sig)
        if self.should_exit and self._loop is not None:
            self._loop.call_soon_threadsafe(self._hang_up)
        self.should_exit = True


def _write_access_log() -> None:
    logger = logging.getLogger("uvicorn.access")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
