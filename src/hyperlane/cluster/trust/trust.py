"""What head and worker have in common: credentials that are always the newest, and a say in who is let in."""

from __future__ import annotations

from typing import Protocol

from hyperlane.cluster.trust.credentials import NodeCredentials
from hyperlane.wire.peer import Peer


class Trust(Protocol):
    """A node's side of its cluster's trust."""

    @property
    def credentials(self) -> NodeCredentials:
        """The newest ones: they are renewed while the process runs."""
        ...

    def check(self, peer: Peer) -> None:
        """Refuse a certificate that was taken back. From any thread; must not block for long.

        Raises:
            NotTrusted: it was.

        """
        ...
