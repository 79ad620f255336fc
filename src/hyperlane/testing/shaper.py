"""A TCP proxy that is a slow, long or broken cable: rate, delay, jitter, cut, heal. On every system, without root.

Stands between two ends on loopback. It shapes bytes, not packets: TCP's own answer to loss is not seen (`lan_relay`
has that). Knows nothing of what passes.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hyperlane.core import Address

CHUNK_BYTES = 64 << 10
ANY_PORT = Address("127.0.0.1", 0)
WINDOW_BYTES = 8 << 20
"""What one direction may hold; beyond it the sender feels back-pressure."""
SPIN_S = 100e-6
"""The last part of a wait is spent looking at the clock: a sleep may end that much late."""


@dataclass(frozen=True, slots=True)
class Cable:
    """How it behaves in each direction of each connection. Zero: as good as loopback."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    rate_mbit: float = 0.0


class Shaper:
    """A proxy in front of `target`, reached at `address`, until the block ends. Every method from any thread."""

    def __init__(self, target: Address, cable: Cable | None = None, seed: int = 0, listen: Address = ANY_PORT) -> None:
        """Listen on a free port of loopback, or on `listen`."""
        self._target = target
        self.cable = cable or Cable()
        self._rng = random.Random(seed)
        self._flowing = threading.Event()
        self._flowing.set()
        self._closing = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((listen.host, listen.port))
        host, port = self._listener.getsockname()[:2]
        self.address = Address(host, port)
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def cut(self) -> None:
        """Pull the cable: nothing passes in either direction, and nobody is told."""
        self._flowing.clear()

    def heal(self) -> None:
        """Plug it in again: what was under way arrives."""
        self._flowing.set()

    def reset(self) -> None:
        """Break every connection; new ones may be made."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for sock in sockets:
            _close(sock)

    def close(self) -> None:
        """Break everything and stop listening. Idempotent."""
        self._closing = True
        self.heal()
        _close(self._listener)
        self.reset()
        self._threads[0].join()  # the one that starts the others
        for thread in self._threads:
            thread.join()

    # --- inside ----------------------------------------------------------------------------------------------

    def _start(self, work: object, *given: object) -> None:
        thread = threading.Thread(target=work, args=given, name="shaper", daemon=True)  # type: ignore[arg-type]
        # The first one starts the others, and alone changes this list until it has ended.
        self._threads = [*self._threads[:1], *(one for one in self._threads[1:] if one.is_alive()), thread]
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                far = socket.create_connection((self._target.host, self._target.port))
            except OSError:
                _close(near)
                continue
            with self._lock:
                self._sockets += [near, far]
            if self._closing:
                self.reset()
            for source, sink in ((near, far), (far, near)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                lane = _Lane(self, sink)
                self._start(lane.fill, source)
                self._start(lane.empty)

    def hold(self) -> None:
        """Wait while the cable is cut."""
        self._flowing.wait()

    def jitter_s(self) -> float:
        """What the next piece is late, in seconds."""
        return self._rng.uniform(0.0, self.cable.jitter_ms) / 1e3


class _Lane:
    """One direction of one connection."""

    def __init__(self, shaper: Shaper, sink: socket.socket) -> None:
        self._shaper = shaper
        self._sink = sink
        self._change = threading.Condition()
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._held = 0
        self._free_at_s = self._last_at_s = 0.0

    def fill(self, source: socket.socket) -> None:
        """Take what the source sends until it ends."""
        data = b"-"
        while data:
            try:
                data = source.recv(CHUNK_BYTES)
            except OSError:
                data = b""
            with self._change:
                self._change.wait_for(lambda: self._held < WINDOW_BYTES)
                self._waiting.append((self._arrival_s(len(data)), data))
                self._held += len(data)
                self._change.notify_all()

    def empty(self) -> None:
        """Give each piece to the sink when it is due."""
        while True:
            with self._change:
                self._change.wait_for(lambda: bool(self._waiting))
                due_s, data = self._waiting.popleft()
            _sleep_until(due_s)
            self._shaper.hold()
            if not data:
                with suppress(OSError):
                    self._sink.shutdown(socket.SHUT_WR)
                return
            with suppress(OSError):  # a reader that has gone ends the source's connection too, by its own end
                self._sink.sendall(data)
            with self._change:
                self._held -= len(data)
                self._change.notify_all()

    def _arrival_s(self, size: int) -> float:
        cable, now_s = self._shaper.cable, time.monotonic()
        self._free_at_s = max(self._free_at_s, now_s) + (size * 8e-6 / cable.rate_mbit if cable.rate_mbit else 0.0)
        self._last_at_s = max(self._last_at_s, self._free_at_s + cable.delay_ms / 1e3 + self._shaper.jitter_s())
        return self._last_at_s


def _sleep_until(moment_s: float) -> None:
    rest_s = moment_s - time.monotonic()
    if rest_s > SPIN_S:
        time.sleep(rest_s - SPIN_S)
    while time.monotonic() < moment_s:
        continue


def _close(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
