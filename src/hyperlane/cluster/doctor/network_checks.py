"""Judges what was found on the network: interfaces, multicast, ways to other machines, their versions. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from hyperlane.cluster.discovery.advert import Heard, NodeKind
from hyperlane.cluster.discovery.interfaces import Interface, InterfaceKind, suitable
from hyperlane.cluster.doctor.finding import Finding, note, ok, problem, warning

OFFSET_WARNED_S = 30.0
OFFSET_REFUSED_S = 300.0
"""Certificates begin some minutes before they are made; beyond that the other side does not believe them."""

_BY_HAND = "name the machines by address: HYPERLANE_DISCOVERY_ADDRESSES, or join with a token, which needs no multicast"


class Reach(enum.StrEnum):
    """How a TCP port answers."""

    OPEN = "open"
    CLOSED = "closed"
    SILENT = "silent"
    NO_HOST = "no such host on the network"
    NO_ROUTE = "no route"


@dataclass(frozen=True, slots=True)
class MulticastFacts:
    """One interface's self-test. `error`: why mDNS did not start; `others`: how many other machines were heard."""

    interface: str
    error: str = ""
    heard_self: bool = False
    others: int = 0


@dataclass(frozen=True, slots=True)
class PathFacts:
    """One way to a machine. `rtt_s` None: its port does not answer this way; `interface`: ours, empty off the LAN."""

    host: str
    interface: str
    kind: InterfaceKind | None
    reach: Reach
    rtt_s: float | None = None
    speed_mbit: int = 0


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """A machine that should be reachable. `heard`: over mDNS; `paths`: every way there, the one in use first.

    `clock_offset_s`: its clock less ours, None when it does not tell.
    """

    name: str
    port: int
    heard: bool
    paths: tuple[PathFacts, ...]
    clock_offset_s: float | None = None


def check_interfaces(interfaces: Sequence[Interface], only: Sequence[str] = ()) -> list[Finding]:
    """Whether one leads to a LAN, and which is tried first."""
    name, there = "interfaces", {one.name for one in interfaces}
    for wanted in only:
        if wanted not in there:
            return [
                problem(
                    name,
                    f"the configuration names the interface {wanted}; there are only {', '.join(sorted(there))}",
                    "discovery hears nobody",
                    "correct HYPERLANE_DISCOVERY_INTERFACES, or leave it out",
                )
            ]
    usable = [one for one in suitable(interfaces) if not only or one.name in only]
    real = [one for one in usable if one.kind < InterfaceKind.VPN]
    listed = ", ".join(
        f"{one.name} ({one.kind}{f', {one.speed_mbit} Mbit/s' if one.speed_mbit else ''})" for one in usable
    )
    if not real:
        return [
            problem(
                name,
                f"no interface leads to a LAN; there are {listed or 'none but loopback'}",
                "other machines are found and reached over virtual networks at best",
                "connect a cable or Wi-Fi; in a container use the host's network; in WSL2 set networkingMode=mirrored",
            )
        ]
    findings = [ok(name, f"{real[0].name} is tried first; in order: {listed}")]
    if real[0].kind is InterfaceKind.WIRELESS:
        findings.append(
            note(
                name,
                f"the best way to other machines is wireless ({real[0].name})",
                "each hop of a token costs milliseconds",
                "use a cable if you can",
            )
        )
    return findings


def check_listen(host: str, interfaces: Sequence[Interface]) -> Finding:
    """Whether the address that a worker listens on is one that others reach."""
    name = "address"
    owner = next((one for one in interfaces if any(str(network.ip) == host for network in one.networks)), None)
    if host in ("0.0.0.0", "::"):  # noqa: S104 (compared, not bound)
        return ok(name, "a worker listens on every interface")
    if owner is None:
        return problem(
            name,
            f"{host} is no address of this machine",
            "the worker cannot start",
            "leave --listen out, or correct it",
        )
    if owner.kind is InterfaceKind.LOOPBACK:
        return note(
            name,
            f"a worker listens on {host} alone",
            "other machines cannot use it",
            "join a cluster: hyperlane worker --join TOKEN",
        )
    if owner.kind >= InterfaceKind.VPN:
        return warning(
            name,
            f"a worker listens on {host}, which is {owner.name}, a {owner.kind} interface",
            "tokens take a detour, or never arrive",
            "listen on the LAN's address, or on every interface: leave --listen out",
        )
    return ok(name, f"a worker listens on {host} ({owner.name})")


def check_multicast(tests: Sequence[MulticastFacts], peers: Sequence[PeerFacts]) -> list[Finding]:
    """Whether mDNS works here, and whether it crosses the network to machines that unicast reaches."""
    findings = [_self_test(test) for test in tests]
    for peer in peers:
        via = {path.interface for path in peer.paths if path.reach is Reach.OPEN and path.interface}
        deaf = [test for test in tests if test.interface in via and test.heard_self]
        if deaf and not peer.heard:
            findings.append(
                warning(
                    "multicast",
                    f"{peer.name} answers at {peer.paths[0].host} over {deaf[0].interface}, but its mDNS is not heard",
                    "multicast is lost between the two: an access point or a switch filters it, or a firewall there "
                    "drops UDP port 5353",
                    f"allow UDP port 5353 and multicast (IGMP snooping off, or a querier on); or {_BY_HAND}",
                )
            )
    return findings


def _self_test(test: MulticastFacts) -> Finding:
    name = "multicast"
    if test.error:
        return warning(
            name,
            f"mDNS does not start on {test.interface}: {test.error}",
            "machines are not found over this interface",
            f"see which program holds UDP port 5353 (ss -ulpn sport = 5353) and does not share it; or {_BY_HAND}",
        )
    if not test.heard_self:
        return warning(
            name,
            f"this machine does not hear its own mDNS on {test.interface}",
            "its firewall drops multicast: it will hear nobody else either",
            f"allow UDP port 5353 in and out (ufw allow 5353/udp; firewall-cmd --add-service=mdns); or {_BY_HAND}",
        )
    others = f", {test.others} other machine(s) heard" if test.others else ", no other machine heard"
    return ok(name, f"mDNS works on {test.interface}{others}")


def check_peer(peer: PeerFacts) -> list[Finding]:
    """Whether a machine can be reached, over which of its ways, and whether its clock agrees."""
    open_paths = [path for path in peer.paths if path.reach is Reach.OPEN]
    if not open_paths:
        return [_unreachable(peer)]
    first = open_paths[0]
    findings = [ok("reach", f"{peer.name} answers at {first.host} over {first.interface or 'a router'}{_rtt(first)}")]
    if len(open_paths) > 1:
        findings.append(_compare(peer, open_paths))
    offset_s = peer.clock_offset_s
    if offset_s is not None and abs(offset_s) > OFFSET_WARNED_S:
        said = f"the clock of {peer.name} is {abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} this one"
        set_it = "set both clocks by the network: `timedatectl set-ntp true` on Linux"
        if abs(offset_s) > OFFSET_REFUSED_S:
            findings.append(problem("clock", said, "certificates look expired, or from the future", set_it))
        else:
            findings.append(
                warning("clock", said, "log entries do not line up, and certificates soon will not", set_it)
            )
    return findings


def _unreachable(peer: PeerFacts) -> Finding:
    name = "reach"
    if not peer.paths:
        return problem(
            name,
            f"{peer.name} is heard, but none of its addresses is on a network of this machine",
            "the two are on different networks, or its advert is false",
            "compare the network masks of both; or connect both to one switch",
        )
    path = min(peer.paths, key=lambda path: list(Reach).index(path.reach))
    at = f"{peer.name} at {path.host}"
    match path.reach:
        case Reach.CLOSED:
            return problem(
                name,
                f"{at}: the machine is there, but nothing listens on port {peer.port}",
                "the worker does not run, has another port, or listens on loopback alone",
                "there: `hyperlane service status`, or start `hyperlane worker`; check its --listen",
            )
        case Reach.SILENT:
            return problem(
                name,
                f"{at}: the machine is there, but port {peer.port} does not answer at all",
                "a firewall in between, or on that machine, drops it",
                f"there: allow TCP ports {peer.port} and {peer.port + 1} (ufw allow {peer.port}:{peer.port + 1}/tcp)",
            )
        case Reach.NO_HOST:
            return problem(
                name,
                f"{at} is on this network, but no machine answers for that address",
                "it is off, has another address now, or the access point keeps its clients apart (client isolation, "
                "guest network)",
                "see that it is on and its address is right; switch client isolation off, or use a cable",
            )
        case _:
            return problem(name, f"there is no route to {at}", "it is on another network", "connect both to one switch")


def _compare(peer: PeerFacts, paths: Sequence[PathFacts]) -> Finding:
    """Several ways: which is faster, by what the links say of their speed, then by round trip."""
    fastest = min(paths, key=lambda path: (-path.speed_mbit if path.speed_mbit else 0, path.rtt_s or 0.0))
    listed = "; ".join(
        f"{path.interface or path.host}{f' {path.speed_mbit} Mbit/s' if path.speed_mbit else ''}{_rtt(path)}"
        for path in paths
    )
    used = paths[0]
    if fastest is used:
        return note(
            "paths", f"{len(paths)} ways lead to {peer.name}: {listed}", f"{used.interface} is used, the fastest"
        )
    return warning(
        "paths",
        f"{len(paths)} ways lead to {peer.name}: {listed}",
        f"{used.interface} is tried first, but {fastest.interface} is faster",
        f"keep to the faster one: HYPERLANE_DISCOVERY_INTERFACES={fastest.interface}",
    )


def _rtt(path: PathFacts) -> str:
    return f", round trip {path.rtt_s * 1e3:.2f} ms" if path.rtt_s is not None else ""


def check_versions(adverts: Sequence[Heard], version: str, protocol: int) -> list[Finding]:
    """Whether the machines that are heard speak with this one."""
    findings = []
    for advert in {heard.advert for heard in adverts}:
        if advert.protocol != protocol:
            older = advert.name if advert.protocol < protocol else "this machine"
            findings.append(
                problem(
                    "version",
                    f"{advert.name} speaks protocol {advert.protocol} (Hyperlane {advert.version}), this machine "
                    f"{protocol} (Hyperlane {version})",
                    "they cannot work together",
                    f"update {older}: pip install --upgrade hyperlane",
                )
            )
        elif advert.version != version:
            findings.append(
                note(
                    "version",
                    f"{advert.name} has Hyperlane {advert.version}, this machine {version}",
                    "they work together",
                    "update the older when convenient",
                )
            )
    return sorted(findings, key=lambda one: one.found)


def check_heads(adverts: Sequence[Heard], cluster: str) -> list[Finding]:
    """Which heads are heard, and whether one is ours. `cluster`: as adverts have it, empty before joining."""
    heads = {
        (heard.advert.cluster, heard.advert.name): heard for heard in adverts if heard.advert.kind is NodeKind.HEAD
    }
    findings = []
    for (theirs, name), heard in sorted(heads.items()):
        at = f"{name} is the head of cluster {theirs[:8]}, heard on {heard.interface}"
        if cluster == theirs:
            findings.append(ok("head", f"{at}; this machine is in that cluster"))
        elif cluster:
            findings.append(note("head", f"{at}; this machine is in another cluster", "the two leave each other alone"))
        else:
            findings.append(
                note(
                    "head",
                    at,
                    "this machine can join it",
                    "there: hyperlane token create; here: hyperlane worker --join TOKEN",
                )
            )
    return findings


def check_duplicates(adverts: Sequence[Heard], own_node: str, own_machine: str, own_name: str) -> list[Finding]:
    """Whether two machines claim to be one node, this one among them."""
    claims: dict[str, dict[str, str]] = {}
    if own_node:
        claims[own_node] = {own_machine: f"this machine ({own_name})"}
    for heard in adverts:
        machines = claims.setdefault(heard.advert.node.hex(), {})
        machines.setdefault(heard.advert.machine, heard.advert.name)
    return [
        problem(
            "identity",
            f"{' and '.join(sorted(machines.values()))} have the identity of one node ({node[:8]})",
            "a state directory was copied from one to the other; the second is left out of every plan",
            "on the copy: delete the folder 'trust' in the state directory and join again with a token",
        )
        for node, machines in claims.items()
        if len(machines) > 1
    ]
