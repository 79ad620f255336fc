"""What a worker knows of certificates that were taken back: told by the head with every heartbeat, kept on disk."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from pathlib import Path

from hyperlane.cluster.trust.files import read_private, write_private
from hyperlane.errors import NotTrusted
from hyperlane.wire.peer import Peer

log = logging.getLogger(__name__)

MAX_SERIALS = 4096


class Revocations:
    """Serial numbers that are refused. Only ever grows while the process lives; every method from any thread."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier run knew.

        Raises:
            NotTrusted: the file is damaged, or others may read it.

        """
        self._path = path
        self._guard = threading.Lock()
        data = read_private(path)
        try:
            self._serials = frozenset(int(serial, 16) for serial in json.loads(data)) if data else frozenset()
        except (ValueError, TypeError) as error:
            raise NotTrusted(f"{path} is damaged ({error}): delete it; the head tells it anew") from error

    def tell(self, serials: Iterable[int]) -> None:
        """Learn of serial numbers; those that are new are kept on disk.

        Raises:
            NotTrusted: there are more than any cluster has.

        """
        told = frozenset(serials)
        with self._guard:
            if told <= self._serials:
                return
            if len(self._serials | told) > MAX_SERIALS:
                raise NotTrusted(f"more than {MAX_SERIALS} certificates are said to have been taken back")
            log.warning("%d certificates of this cluster were taken back", len(told - self._serials))
            self._serials |= told
            write_private(self._path, json.dumps([f"{serial:x}" for serial in sorted(self._serials)]).encode())

    def check(self, peer: Peer) -> None:
        """Refuse a certificate that was taken back.

        Raises:
            NotTrusted: it was.

        """
        if peer.serial in self._serials:
            raise NotTrusted(f"{peer} was removed from the cluster")
