"""The trust of a process that a worker starts: what the worker keeps on disk, read anew when it changes."""

from __future__ import annotations

import threading
from pathlib import Path

from hyperlane.cluster.trust.credentials import FILE, NodeCredentials
from hyperlane.cluster.trust.revocations import Revocations
from hyperlane.errors import NotTrusted
from hyperlane.wire.peer import Peer

REVOKED = "revoked.json"


class FolderTrust:
    """Is a `Trust`; every method from any thread. The worker renews and revokes, this only looks."""

    def __init__(self, folder: Path) -> None:
        """`folder`: the worker's.

        Raises:
            NotTrusted: there is no certificate in it, or a file is damaged.

        """
        self._folder = folder
        self._guard = threading.Lock()
        self._credentials, self._revocations = self._read()
        self._seen = self._state()

    @property
    def credentials(self) -> NodeCredentials:
        """As `Trust.credentials`."""
        self._look()
        return self._credentials

    def check(self, peer: Peer) -> None:
        """As `Trust.check`."""
        self._look()
        self._revocations.check(peer)

    def _look(self) -> None:
        with self._guard:
            state = self._state()
            if state != self._seen:
                self._credentials, self._revocations = self._read()
                self._seen = state

    def _read(self) -> tuple[NodeCredentials, Revocations]:
        credentials = NodeCredentials.load(self._folder)
        if credentials is None:
            raise NotTrusted(f"there is no certificate in {self._folder}")
        return credentials, Revocations(self._folder / REVOKED)

    def _state(self) -> tuple[tuple[int, int], ...]:
        """When each file was last replaced."""
        state = []
        for name in (FILE, REVOKED):
            try:
                status = (self._folder / name).stat()
                state.append((status.st_mtime_ns, status.st_ino))
            except FileNotFoundError:
                state.append((0, 0))
        return tuple(state)
