"""Which of a machine's interfaces lead to a LAN, and which of a peer's addresses to try first. Pure.

A guess from names and what the system says, for the order alone: what is fast is measured elsewhere.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class InterfaceKind(enum.IntEnum):
    """What an interface is, the likeliest way to other machines first."""

    WIRED = 0
    UNKNOWN = 1
    WIRELESS = 2
    VPN = 3
    VIRTUAL = 4
    LOOPBACK = 5

    def __str__(self) -> str:
        return self.name.lower()


_LOOPBACK = re.compile(r"lo\d*|loopback.*", re.IGNORECASE)
_VIRTUAL = re.compile(
    r"docker\d*|br-[0-9a-f]{6,}|veth.*|virbr.*|vmnet\d*|vboxnet\d*|vnet\d+|cni.*|flannel.*|cali.*|cilium.*|kube.*"
    r"|podman\d*|lxcbr\d*|lxdbr\d*|incusbr\d*|dummy\d*|ifb\d*|ap\d+|awdl\d+|llw\d+|anpi\d+|gif\d+|stf\d+"
    r"|vethernet.*|virtualbox.*|vmware.*|hyper-v.*|bluetooth.*",
    re.IGNORECASE,
)
_VPN = re.compile(r"tun\d*|tap\d*|utun\d*|wg.*|ppp\d*|zt.*|tailscale.*|ipsec\d*|nordlynx|proton.*|wireguard.*", re.I)
_WIRELESS = re.compile(r"wl.*|wi-?fi.*|wlan.*|ath\d+", re.IGNORECASE)
_WIRED = re.compile(r"eth\d+|en[opsx]\w+|ethernet.*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Network:
    """One address of an interface and how many bits of it name its network."""

    ip: IpAddress
    prefix: int

    def holds(self, ip: IpAddress) -> bool:
        """Whether an address is on the same network."""
        return ip.version == self.ip.version and ip in ipaddress.ip_network((int(self.ip), self.prefix), strict=False)

    @property
    def is_link_local(self) -> bool:
        """Whether the address means something on this interface alone."""
        return self.ip.is_link_local


@dataclass(frozen=True, slots=True)
class Interface:
    """What the system says of one interface. `speed_mbit`: 0 when it does not know.

    `physical`: whether there is a device behind it, or, for a bridge, behind one of its ports; None: not known.
    """

    name: str
    index: int
    networks: tuple[Network, ...]
    is_up: bool = True
    multicast: bool = True
    speed_mbit: int = 0
    mtu: int = 1500
    physical: bool | None = None
    wireless: bool = False

    @property
    def kind(self) -> InterfaceKind:
        """What it is."""
        if _LOOPBACK.fullmatch(self.name) or (self.networks and all(one.ip.is_loopback for one in self.networks)):
            return InterfaceKind.LOOPBACK
        if self.wireless or (_WIRELESS.fullmatch(self.name) and self.physical is not False):
            return InterfaceKind.WIRELESS
        if _VPN.fullmatch(self.name):
            return InterfaceKind.VPN
        if _VIRTUAL.fullmatch(self.name):
            return InterfaceKind.VIRTUAL
        return InterfaceKind.WIRED if self.physical or _WIRED.fullmatch(self.name) else InterfaceKind.UNKNOWN

    @property
    def ipv4(self) -> tuple[str, ...]:
        """Its IPv4 addresses."""
        return tuple(str(one.ip) for one in self.networks if one.ip.version == 4)

    @property
    def has_ipv6(self) -> bool:
        """Whether it has an IPv6 address."""
        return any(one.ip.version == 6 for one in self.networks)

    @property
    def sort_key(self) -> tuple[int, int, str]:
        """The best first: by kind, then the fastest, then by name so that the order never changes by itself."""
        return self.kind, -self.speed_mbit, self.name


def suitable(interfaces: Iterable[Interface], *, loopback: bool = False) -> tuple[Interface, ...]:
    """Those that other machines may be found on, the best first. `loopback`: this machine's own too."""
    fit = (
        one
        for one in interfaces
        if one.is_up and one.networks and (one.multicast or one.kind is InterfaceKind.LOOPBACK)
        if loopback or one.kind is not InterfaceKind.LOOPBACK
    )
    return tuple(sorted(fit, key=lambda one: one.sort_key))


@dataclass(frozen=True, slots=True)
class Way:
    """An address of a peer, and the interface of ours whose network it is on."""

    host: str
    interface: Interface

    @property
    def sort_key(self) -> tuple[tuple[int, int, str], bool, int]:
        """By interface, link-local ones last, IPv4 first."""
        ip = parsed(self.host)
        return self.interface.sort_key, ip is None or ip.is_link_local, 6 if ip is None else ip.version


def ways_to(hosts: Iterable[str], interfaces: Sequence[Interface], *, same_machine: bool = False) -> tuple[Way, ...]:
    """The addresses of a peer that are on a network of ours, the likeliest first.

    An address that is also one of ours is another machine's docker0 or the like: dialling it would find ourselves.
    `same_machine`: it is one of ours, because the peer is on this machine.
    """
    found = {}
    own = {one.ip for interface in interfaces for one in interface.networks}
    for host in hosts:
        ip = parsed(host)
        if ip is None or ip.is_multicast or ip.is_unspecified or (_bare(ip) in own and not same_machine):
            continue
        leading = [one for one in interfaces if _leads_to(one, ip)]
        if leading:
            found[host] = Way(host, min(leading, key=lambda one: one.sort_key))
    return tuple(sorted(found.values(), key=lambda way: way.sort_key))


def parsed(host: str) -> IpAddress | None:
    """An address that is one; None for names."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _leads_to(interface: Interface, ip: IpAddress) -> bool:
    scope = getattr(ip, "scope_id", None)
    if scope is not None and scope not in (str(interface.index), interface.name):
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_link_local and scope is None:
        return False
    return any(one.holds(_bare(ip)) for one in interface.networks)


def _bare(ip: IpAddress) -> IpAddress:
    """Without the interface that a link-local address is to be looked for on."""
    return ipaddress.IPv6Address(int(ip)) if isinstance(ip, ipaddress.IPv6Address) else ip
