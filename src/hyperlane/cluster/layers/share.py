"""A worker's side of sharing: a child process that gives other workers what this one's cache holds.

Started when a head first asks where it is, so that a worker that has the model's file itself pays nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path

from hyperlane.cluster.announce import STOP_WITHIN_S, Child, ChildFailed
from hyperlane.cluster.trust import old_tls
from hyperlane.core import Address

log = logging.getLogger(__name__)

READY_WITHIN_S = 30.0
PORTS_TRIED = 16
MODULE = "hyperlane.cluster.layers.server"


class Sharing:
    """The server of one worker. Every method from any thread."""

    def __init__(self, store: Path, logs: Path, trust: Path | None) -> None:
        """Nothing is started yet. `store`: the tensors' folder; `trust`: the worker's, None for plain on loopback."""
        self._store, self._logs, self._trust = store, logs, trust
        self._guard = threading.Lock()
        self._child: Child | None = None
        self._port = 0
        self._closed = False

    def port(self, beside: Address) -> int:
        """Where others reach it, started now if need be; 0 if it cannot be. `beside`: the worker's data port."""
        with self._guard:
            if self._closed or (self._child is not None and self._child.ended is None):
                return self._port
            self._stop()
            try:
                self._start(beside)
            except (ChildFailed, OSError) as error:
                log.warning("this worker shares no tensors with others: its server %s", error)
                self._stop()
            return self._port

    def close(self) -> None:
        """End it. Idempotent."""
        with self._guard:
            self._closed = True
            self._stop()

    def _start(self, beside: Address) -> None:
        address = _free_beside(beside)
        command = [sys.executable, "-m", MODULE, "store", str(self._store), "--listen", str(address)]
        if self._trust is not None:
            command += ["--trust", str(self._trust)]
        log_file = self._logs / f"share-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        self._child = Child(command, log_file, {**os.environ, **old_tls.VARIABLES})
        self._port = self._child.announcement(time.monotonic() + READY_WITHIN_S).address.port

    def _stop(self) -> None:
        child, self._child, self._port = self._child, None, 0
        if child is not None:
            child.stop(time.monotonic() + STOP_WITHIN_S)


def _free_beside(beside: Address) -> Address:
    """The next free port, so that firewalls can be told; any if none is near."""
    for port in range(beside.port + 1, min(beside.port + PORTS_TRIED, 1 << 16)):
        family = socket.AF_INET6 if ":" in beside.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((beside.host, port))
            except OSError:
                continue
            return Address(beside.host, port)
    return Address(beside.host, 0)
