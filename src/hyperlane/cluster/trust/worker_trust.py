"""The worker's side of trust: the cluster that it has joined, its certificate, what was taken back. Knows no server."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.trust import door_client
from hyperlane.cluster.trust.binding import Machine
from hyperlane.cluster.trust.credentials import NodeCredentials
from hyperlane.cluster.trust.files import read_private, write_private
from hyperlane.cluster.trust.node import node_identity
from hyperlane.cluster.trust.revocations import Revocations
from hyperlane.cluster.trust.token import JoinToken
from hyperlane.core import Address
from hyperlane.errors import HyperlaneError, NotTrusted
from hyperlane.wire.peer import Peer

log = logging.getLogger(__name__)

RENEW_EVERY_S = 6 * 3600.0
DOOR = "door.json"


class WorkerTrust:
    """The cluster that this machine works for. Is a `Trust`; every method from any thread."""

    def __init__(self, folder: Path, credentials: NodeCredentials, door: Sequence[Address]) -> None:
        """`folder`: with what `join` or a head has stored; `door`: where the head's door is, empty for its own worker.

        Raises:
            NotTrusted: a file is damaged, or others may read it.

        """
        self._folder = folder
        self._credentials = credentials
        self._door = tuple(door)
        self._revocations = Revocations(folder / "revoked.json")

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return self._folder

    @property
    def credentials(self) -> NodeCredentials:
        """As `Trust.credentials`."""
        return self._credentials

    def check(self, peer: Peer) -> None:
        """As `Trust.check`."""
        self._revocations.check(peer)

    def tell_revoked(self, serials: Iterable[int]) -> None:
        """The head says which certificates were taken back.

        Raises:
            NotTrusted: there are more than any cluster has.

        """
        self._revocations.tell(serials)

    @property
    def has_door(self) -> bool:
        """Whether it knows where its head's door is."""
        return bool(self._door)

    def register(self, control_port: int, data_port: int, machine: str, name: str) -> None:
        """Tell the head that this worker is there, at the address that this comes from.

        Raises:
            HyperlaneError: the head cannot be reached, or refuses.

        """
        ask = pb.RegisterRequest(control_port=control_port, data_port=data_port, machine=machine, name=name)
        door_client.register(self._door, self._credentials, ask)

    def renew(self) -> bool:
        """Get the next certificate if it is time; whether there is a new one.

        Raises:
            HyperlaneError: the head cannot be reached, or refuses.

        """
        if not self._door or not self._credentials.certificate.needs_renewal(datetime.now(UTC)):
            return False
        got = door_client.renew(self._door, self._credentials)
        self._credentials = NodeCredentials.store(self._folder, got.authority, got.certificate, got.key)
        return True


class Renewal:
    """A thread that renews a worker's certificate in time, until `close`."""

    def __init__(self, trust: WorkerTrust, on_renewed: Callable[[], None], every_s: float = RENEW_EVERY_S) -> None:
        """Start; the first look is at once."""
        self._trust, self._on_renewed, self._every_s = trust, on_renewed, every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="certificate-renewal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                if self._trust.renew():
                    self._on_renewed()
            except (HyperlaneError, OSError) as error:
                until = self._trust.credentials.certificate.until
                log.warning("the certificate, valid until %s, could not be renewed: %s", f"{until:%Y-%m-%d}", error)
            if self._closing.wait(self._every_s):
                return


def joined(trust: Path, machine: Machine | None = None) -> WorkerTrust | None:
    """The cluster that this machine has joined, None if it has joined none.

    Raises:
        DuplicateIdentity: the folder was copied from another machine.
        NotTrusted: a file is damaged, or the certificate has expired.

    """
    folder = trust / "worker"
    credentials = NodeCredentials.load(folder)
    if credentials is None:
        return None
    if credentials.name.node != node_identity(trust, machine):
        raise NotTrusted(f"the certificate in {folder} is another node's: join again with --join TOKEN")
    if credentials.certificate.until < datetime.now(UTC):
        raise NotTrusted(
            f"this machine's certificate expired on {credentials.certificate.until:%Y-%m-%d}: join again with "
            "--join TOKEN (`hyperlane token create` on the head makes one)"
        )
    return WorkerTrust(folder, credentials, _door(folder)[0])


def join(word: str, trust: Path, name: str, machine: Machine | None = None) -> WorkerTrust:
    """Join with a token, once: with the same token again nothing happens.

    Raises:
        JoinRefused: the token is mistyped, or opens nothing.
        DuplicateIdentity: the folder was copied from another machine.
        WorkerUnreachable: nothing answers at the token's addresses.
        NotTrusted: a file is damaged.

    """
    token = JoinToken.decode(word)
    node, folder = node_identity(trust, machine), trust / "worker"
    present = NodeCredentials.load(folder)
    if present is not None and (present.name.node != node or present.certificate.until < datetime.now(UTC)):
        present = None
    if present is None or _door(folder)[1] != token.token_id.hex():
        got = door_client.join(token, node, name, present)
        present = NodeCredentials.store(folder, got.authority, got.certificate, got.key)
        door = {"addresses": [str(address) for address in token.addresses], "token": token.token_id.hex()}
        write_private(folder / DOOR, json.dumps(door).encode())
    return WorkerTrust(folder, present, token.addresses)


def started_by_head(folder: Path) -> WorkerTrust:
    """What a head has stored for the workers that it starts itself.

    Raises:
        NotTrusted: there is nothing, or it is damaged.

    """
    credentials = NodeCredentials.load(folder)
    if credentials is None:
        raise NotTrusted(f"there is no certificate in {folder}")
    return WorkerTrust(folder, credentials, ())


def door_addresses(trust: Path) -> tuple[Address, ...]:
    """Where the head's door was when this machine joined; nowhere if it has joined none.

    Raises:
        NotTrusted: the file is damaged.

    """
    return _door(trust / "worker")[0]


def _door(folder: Path) -> tuple[tuple[Address, ...], str]:
    """Where the head's door was, and the token that opened it."""
    data = read_private(folder / DOOR)
    if data is None:
        return (), ""
    try:
        said = json.loads(data)
        return tuple(Address.parse(text) for text in said["addresses"]), str(said["token"])
    except (ValueError, KeyError, TypeError) as error:
        raise NotTrusted(f"{folder / DOOR} is damaged ({error}): join again with --join TOKEN") from error
