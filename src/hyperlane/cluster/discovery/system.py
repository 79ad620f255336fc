"""What this system says of its interfaces. Decides nothing about them."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from pathlib import Path

import ifaddr
import psutil

from hyperlane.cluster.discovery.interfaces import Interface, Network

_SYSFS = Path("/sys/class/net")


def interfaces() -> tuple[Interface, ...]:
    """Every interface that has an address, as it is now."""
    stats = psutil.net_if_stats()
    known = _networks()
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        mine = [known[ip] for ip in (_ip(one.address) for one in addresses) if ip in known]
        state = stats.get(name)
        if not mine or state is None:
            continue
        flags = state.flags.split(",") if getattr(state, "flags", "") else []
        found.append(
            Interface(
                name=name,
                index=_index(name, mine[0][0]),
                networks=tuple(dict.fromkeys(network for _, network in mine)),
                is_up=state.isup,
                multicast=not flags or "multicast" in flags,
                speed_mbit=state.speed,
                mtu=state.mtu,
                physical=_is_physical(name),
                wireless=(_SYSFS / name / "wireless").exists() or (_SYSFS / name / "phy80211").exists(),
            )
        )
    return tuple(found)


def _networks() -> dict[str, tuple[int, Network]]:
    """By address: its interface's index and its network; psutil has names and states, but no index on Windows."""
    found = {}
    for adapter in ifaddr.get_adapters():
        for one in adapter.ips:
            text = one.ip[0] if isinstance(one.ip, tuple) else one.ip
            found[text] = (adapter.index or 0, Network(ipaddress.ip_address(text), one.network_prefix))
    return found


def _index(name: str, fallback: int) -> int:
    if os.name != "posix":
        return fallback
    try:
        return socket.if_nametoindex(name)
    except OSError:  # gone meanwhile
        return fallback


def _ip(text: str) -> str:
    return text.partition("%")[0]


def _is_physical(name: str) -> bool | None:
    if not sys.platform.startswith("linux"):
        return None
    place = _SYSFS / name
    ports = place / "brif"
    if ports.exists():
        return any((_SYSFS / port.name / "device").exists() for port in ports.iterdir())
    return (place / "device").exists()
