"""Which addresses of this machine others may reach it at: a guess, the likeliest first, for tokens to carry."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence

import psutil

from hyperlane.cluster.trust.token import MAX_ADDRESSES
from hyperlane.core import Address

_INTERNAL = re.compile(r"(lo\d*|docker.*|br-.*|veth.*|virbr.*|vmnet.*|vboxnet.*|cni.*|flannel.*|cali.*|podman.*)")


def own_addresses(listening: Address) -> Sequence[Address]:
    """Where a port is reached that listens on an address, which may be that of every interface."""
    if listening.host not in ("0.0.0.0", "::"):  # noqa: S104 (compares)
        return [listening]
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for name, addresses in psutil.net_if_addrs().items():
        if _INTERNAL.fullmatch(name):
            continue
        for one in addresses:
            if one.family in (socket.AF_INET, socket.AF_INET6):
                ip = ipaddress.ip_address(one.address.partition("%")[0])
                # A link-local address means another thing on another machine.
                if not (ip.is_loopback or ip.is_link_local) and (listening.host == "::" or ip.version == 4):
                    found.append(ip)
    found.sort(key=lambda ip: (ip.version, not ip.is_private, int(ip)))
    hosts = [str(ip) for ip in found[:MAX_ADDRESSES]] or ["127.0.0.1"]
    return [Address(host, listening.port) for host in hosts]
