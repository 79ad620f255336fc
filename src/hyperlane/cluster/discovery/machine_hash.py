"""What tells this machine from others, as a short hash that can be told to strangers."""

from __future__ import annotations

import hashlib
import platform
import uuid

from hyperlane.cluster.trust.binding import Machine

HEX_DIGITS = 16


def machine_hash(machine: Machine | None) -> str:
    """Of what the system says, else of the host's name and a network card's address.

    The same for all processes of a machine and after a restart; two machines with copies of one disk differ in the
    second alone, and in `machine` if their system was set up again.
    """
    said = f"{machine.source}\0{machine.value}" if machine else f"{platform.node()}\0{uuid.getnode():x}"
    return hashlib.sha256(b"hyperlane machine\0" + said.encode()).hexdigest()[:HEX_DIGITS]
