"""A node's identity: 16 random bytes made at the first start, and bound to the machine so that a copy is noticed.

Knows no certificate and no cluster.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from pathlib import Path

from filelock import FileLock

from hyperlane.cluster.trust.binding import Machine, this_machine
from hyperlane.cluster.trust.files import private_folder, read_private, write_private
from hyperlane.core import NodeId
from hyperlane.errors import DuplicateIdentity, NotTrusted
from hyperlane.wire.peer import ID_BYTES

log = logging.getLogger(__name__)

FILE = "node.json"
LOCK_TIMEOUT_S = 10.0


def node_identity(trust: Path, machine: Machine | None = None) -> NodeId:
    """This machine's id in a state directory, made if there is none. `machine`: what `this_machine` said.

    Raises:
        DuplicateIdentity: the directory was made on another machine.
        NotTrusted: the file is damaged.
        OSError: the folder cannot be written.

    """
    private_folder(trust)
    machine = machine or this_machine()
    with FileLock(trust / f"{FILE}.lock", timeout=LOCK_TIMEOUT_S):
        data = read_private(trust / FILE)
        if data is None:
            return _made(trust, machine)
    node, source, bound = _parsed(trust / FILE, data)
    if machine is None or machine.source != source:
        log.info("node %s was bound to a %s, which this machine does not tell now", node.hex()[:8], source or "nothing")
    elif _bound(node, machine) != bound:
        raise DuplicateIdentity(_copied(node, trust))
    return node


def _made(trust: Path, machine: Machine | None) -> NodeId:
    node = NodeId(secrets.token_bytes(ID_BYTES))
    said = {"node": node.hex(), "source": "", "machine": ""}
    if machine is not None:
        said |= {"source": machine.source, "machine": _bound(node, machine)}
    write_private(trust / FILE, json.dumps(said).encode())
    return node


def _bound(node: NodeId, machine: Machine) -> str:
    """A hash, so that the file does not tell the machine's own id."""
    return hashlib.sha256(b"hyperlane node\0" + node + f"{machine.source}\0{machine.value}".encode()).hexdigest()


def _parsed(path: Path, data: bytes) -> tuple[NodeId, str, str]:
    try:
        said = json.loads(data)
        node = bytes.fromhex(said["node"])
        source, bound = str(said["source"]), str(said["machine"])
    except (ValueError, KeyError, TypeError) as error:
        node, source, bound = b"", "", str(error)
    if len(node) != ID_BYTES:
        raise NotTrusted(f"{path} is damaged ({bound}): delete {path.parent} and join the cluster again")
    return NodeId(node), source, bound


def _copied(node: NodeId, trust: Path) -> str:
    return (
        f"the state directory {trust.parent} was copied from another machine: both would be node {node.hex()[:8]}. "
        f"On this machine, delete {trust} and join again with: hyperlane worker --join TOKEN. (If that other machine "
        f"is gone for good, or this one has only a new system, delete {trust / FILE} alone.)"
    )
