"""What a node says of itself over mDNS, and how it is read back. Pure; what is read comes from strangers.

Every field is bounded and checked before anybody sees it. An advert is a claim: nothing in it is proved.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hyperlane.core import NodeId

SERVICE = "_hyperlane._tcp.local."

MAX_TXT_BYTES = 512
MAX_NAME = 64
MAX_ADDRESSES = 16
"""Of one advert; more are not looked at."""

_NODE = re.compile(r"[0-9a-f]{32}")
_SHORT_HASH = re.compile(r"[0-9a-f]{16}|")
_VERSION = re.compile(r"[0-9A-Za-z.+!-]{1,32}")


class NodeKind(enum.StrEnum):
    """What a node is to others: one that computes, or one that machines join."""

    WORKER = "worker"
    HEAD = "head"


class BadAdvert(ValueError):
    """An advert that none of ours would send."""


@dataclass(frozen=True, slots=True)
class Advert:
    """One process of one node.

    `machine`: a hash of what tells its machine from others, empty when nothing does. `cluster`: the beginning of its
    cluster's id in hex, empty when it has joined none. `control_port`: of a head, its door. `data_port`: 0 for none.
    """

    node: NodeId
    machine: str
    cluster: str
    name: str
    kind: NodeKind
    version: str
    protocol: int
    control_port: int
    data_port: int = 0


@dataclass(frozen=True, slots=True)
class Heard:
    """An advert as it came: on which interface, under which name, and at which addresses."""

    interface: str
    label: str
    advert: Advert
    hosts: tuple[str, ...]


def short_cluster(cluster: bytes) -> str:
    """What adverts call a cluster: enough to tell clusters of one LAN apart, and no secret."""
    return cluster.hex()[:16]


def txt_of(advert: Advert) -> dict[str, str]:
    """The TXT record of an advert."""
    return {
        "txtvers": "1",
        "node": advert.node.hex(),
        "machine": advert.machine,
        "cluster": advert.cluster,
        "name": advert.name[:MAX_NAME],
        "kind": advert.kind.value,
        "version": advert.version,
        "protocol": str(advert.protocol),
        "data": str(advert.data_port),
    }


def read_advert(txt: Mapping[bytes, bytes | None], port: int) -> Advert:
    """The advert in a TXT record, `port` from the SRV record. Keys that are not known are left alone.

    Raises:
        BadAdvert: a field is missing, too long, or not what it should be.

    """
    if sum(len(key) + len(value or b"") for key, value in txt.items()) > MAX_TXT_BYTES:
        raise BadAdvert(f"its TXT record has more than {MAX_TXT_BYTES} bytes")
    if _text(txt, "txtvers") != "1":
        raise BadAdvert("its TXT record is of another version")
    return Advert(
        node=NodeId(bytes.fromhex(_matching(txt, "node", _NODE))),
        machine=_matching(txt, "machine", _SHORT_HASH),
        cluster=_matching(txt, "cluster", _SHORT_HASH),
        name=_printable(_text(txt, "name")),
        kind=_kind(_text(txt, "kind")),
        version=_matching(txt, "version", _VERSION),
        protocol=_number(txt, "protocol", 1, 1 << 16),
        control_port=_in_range("port", port, 1, 65535),
        data_port=_number(txt, "data", 0, 65535),
    )


def _text(txt: Mapping[bytes, bytes | None], key: str) -> str:
    value = txt.get(key.encode())
    if value is None:
        raise BadAdvert(f"its TXT record has no '{key}'")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise BadAdvert(f"'{key}' in its TXT record is no text") from None


def _matching(txt: Mapping[bytes, bytes | None], key: str, pattern: re.Pattern[str]) -> str:
    value = _text(txt, key)
    if pattern.fullmatch(value) is None:
        raise BadAdvert(f"'{key}' in its TXT record is malformed")
    return value


def _printable(name: str) -> str:
    """A name as it can be shown in a terminal and a log."""
    shown = "".join(c for c in name if c.isascii() and c.isprintable())[:MAX_NAME]
    return shown or "unnamed"


def _kind(word: str) -> NodeKind:
    try:
        return NodeKind(word)
    except ValueError:
        raise BadAdvert("'kind' in its TXT record is neither worker nor head") from None


def _number(txt: Mapping[bytes, bytes | None], key: str, low: int, high: int) -> int:
    value = _text(txt, key)
    if not value.isascii() or not value.isdecimal() or len(value) > 6:
        raise BadAdvert(f"'{key}' in its TXT record is no number")
    return _in_range(key, int(value), low, high)


def _in_range(key: str, number: int, low: int, high: int) -> int:
    if not low <= number <= high:
        raise BadAdvert(f"'{key}' must lie within {low} … {high}")
    return number
