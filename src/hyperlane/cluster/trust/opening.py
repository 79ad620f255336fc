"""From configuration to a head's or a worker's trust, and the head's open door. Decides where files and ports are."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Sequence
from pathlib import Path

from hyperlane.cluster.trust import worker_trust
from hyperlane.cluster.trust.addresses import own_addresses
from hyperlane.cluster.trust.authority import FILE as AUTHORITY
from hyperlane.cluster.trust.binding import Machine, this_machine
from hyperlane.cluster.trust.credentials import FILE as CERTIFICATE
from hyperlane.cluster.trust.door import JoinDoor, OnJoined, OnRegistered
from hyperlane.cluster.trust.files import read_private, write_private
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.cluster.trust.token import JoinToken
from hyperlane.cluster.trust.worker_trust import WorkerTrust
from hyperlane.config import JoinConfig, Paths, WorkerConfig
from hyperlane.core import Address
from hyperlane.errors import ConfigError, NotTrusted

log = logging.getLogger(__name__)

PLAIN = "none"
"""What `WorkerConfig.credentials` says for a worker that its head reaches over loopback, in plain text."""

DOOR = "door.json"


def trust_folder(paths: Paths) -> Path:
    """Where identity, keys and certificates are."""
    return paths.state / "trust"


def known_trust_folder(paths: Paths) -> Path:
    """The same, or that of the first device, where each of this machine's devices has joined a cluster by itself."""
    own = trust_folder(paths)
    joined = [place for place in sorted(paths.devices.glob("*/trust")) if (place / "worker" / CERTIFICATE).exists()]
    return own if (own / "authority").exists() or has_joined(paths) or not joined else joined[0]


def machine_of(paths: Paths) -> Machine | None:
    """What this machine is told apart by."""
    return this_machine(paths.machine)


# --- heads ---------------------------------------------------------------------------------------------------


def head_trust(paths: Paths) -> HeadTrust | None:
    """The cluster that this machine is the head of; None if it is of none.

    Raises:
        DuplicateIdentity: the state directory was copied from another machine.
        NotTrusted: a file is damaged, or others may read it.

    """
    folder = trust_folder(paths)
    if not (folder / "authority" / AUTHORITY).exists():
        return None
    return HeadTrust(folder, machine=machine_of(paths))


def required_head_trust(paths: Paths) -> HeadTrust:
    """As `head_trust`, for commands that need a cluster.

    Raises:
        NotTrusted: there is none.

    """
    found = head_trust(paths)
    if found is None:
        raise NotTrusted("this machine is no cluster's head yet: `hyperlane serve MODEL` makes it one")
    return found


class OpenDoor:
    """A head's trust with its door open, until `close`."""

    def __init__(self, paths: Paths, config: JoinConfig, on_joined: OnJoined | None = None) -> None:
        """Make the cluster at the first start; listen. `listening` is False when another program has the port.

        Raises:
            ConfigError: the address is not this machine's.
            DuplicateIdentity, NotTrusted: as `HeadTrust`.

        """
        self.trust = HeadTrust(trust_folder(paths), machine=machine_of(paths))
        self._config = config
        self._door: JoinDoor | None = None
        try:
            self._door = JoinDoor(self.trust, config.listen, on_joined)
        except ConfigError as error:
            # Two heads of one user share tokens and members: machines may join at the other's door.
            log.warning("%s", error)
            return
        places = advertised(config, self._door.address)
        write_private(_door_file(self.trust), json.dumps([str(place) for place in places]).encode())

    @property
    def listening(self) -> bool:
        """Whether machines can join here."""
        return self._door is not None

    @property
    def port(self) -> int:
        """Where machines join; 0 when they cannot."""
        return self._door.address.port if self._door is not None else 0

    def tell_arrivals(self, on_registered: OnRegistered) -> None:
        """From now on tell of workers that say that they are there."""
        if self._door is not None:
            self._door.on_registered = on_registered

    def token(self, lifetime_s: float, uses: int) -> JoinToken:
        """A new token for this door."""
        return self.trust.create_token(door_addresses(self.trust, self._config), lifetime_s=lifetime_s, uses=uses)

    def close(self) -> None:
        """Close the door. Idempotent."""
        if self._door is not None:
            self._door.close()


def door_addresses(trust: HeadTrust, config: JoinConfig) -> Sequence[Address]:
    """Where the door is, or would be: as it was opened last, with what is configured now before it."""
    data = read_private(_door_file(trust))
    if config.advertise or data is None:
        return advertised(config, config.listen)
    return [Address.parse(place) for place in json.loads(data)]


def advertised(config: JoinConfig, listening: Address) -> Sequence[Address]:
    """The addresses that tokens name for a door that listens there."""
    return config.advertise or own_addresses(listening)


def _door_file(trust: HeadTrust) -> Path:
    return trust.folder / "authority" / DOOR


# --- workers -------------------------------------------------------------------------------------------------


def has_joined(paths: Paths) -> bool:
    """Whether a state directory holds a worker's certificate, valid or not."""
    return (trust_folder(paths) / "worker" / CERTIFICATE).exists()


def worker_trust_of(config: WorkerConfig) -> WorkerTrust | None:
    """The cluster that a worker works for, joined now if it was told to; None for one that serves this machine alone.

    Raises:
        DuplicateIdentity: the state directory was copied from another machine.
        JoinRefused, WorkerUnreachable: the cluster cannot be joined.
        NotTrusted: the certificate has expired, or a file is damaged or open to others.

    """
    if config.credentials == PLAIN:
        return None
    if config.credentials is not None:
        return worker_trust.started_by_head(Path(config.credentials))
    folder, machine = trust_folder(config.paths), machine_of(config.paths)
    if config.join is not None:
        return worker_trust.join(config.join, folder, config.name or platform.node() or "worker", machine)
    return worker_trust.joined(folder, machine)
