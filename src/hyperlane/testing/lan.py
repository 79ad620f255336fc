"""A LAN on one machine: each host a network namespace with interfaces of its own, on a switch in another namespace.

Linux and root alone (`missing` says what lacks). Traffic never leaves the namespaces. Knows nothing of Hyperlane.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from hyperlane.testing.lan_relay import Relay, Shape

IP_TIMEOUT_S = 20.0
_BRIDGE = "br0"
_numbers = itertools.count()
_NAME = re.compile(r"hyperlane-(\d+)-.*")
_PR_SET_PDEATHSIG = 1


def missing() -> str:
    """Why there can be no such LAN here; empty when there can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "bridge", "tc"):
        if shutil.which(tool) is None:
            return f"`{tool}` is missing (Debian: apt-get install iproute2)"
    name = _unique()
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"network namespaces cannot be made here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    return ""


class Lan:
    """A switch and the hosts on it, until the block ends. Several may exist at the same time, in many processes."""

    def __init__(self, subnet: str = "10.77.0") -> None:
        """`subnet`: the first three parts of the hosts' IPv4 addresses; they also have link-local IPv6 ones."""
        self._name = _unique()
        self._subnet = subnet
        self._hosts: dict[str, Host] = {}
        self._namespaces: list[str] = []
        self._relays: list[Relay] = []

    def __enter__(self) -> Self:
        sweep()
        self.switch = self.namespace("sw")
        self.ip(self.switch, f"link add {_BRIDGE} type bridge mcast_snooping 1")
        self.ip(self.switch, f"link set {_BRIDGE} up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for host in self._hosts.values():
            host.end_processes()
        for relay in self._relays:
            relay.close()
        for namespace in self._namespaces:
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)

    def host(self, name: str, rate: str | None = None, shape: Shape | None = None) -> Host:
        """Plug in another host. `rate` as `tc` writes it (`100mbit`); `shape` goes through a relay (see `Relay`)."""
        number = len(self._hosts) + 1
        port = f"p{number}"
        host = Host(self, name, self.namespace(f"h{number}"), port, f"{self._subnet}.{number}")
        self._hosts[name] = host
        if shape is None:
            self.ip(self.switch, f"link add {port} type veth peer name lan0 netns {host.namespace}")
        else:
            host.relay = Relay(self.switch, port, f"t{number}", shape)
            self._relays.append(host.relay)
            self.ip(self.switch, f"link set t{number} netns {host.namespace} name lan0")
        self.ip(self.switch, f"link set {port} master {_BRIDGE} up")
        self.ip(host.namespace, "link set lo up")
        self.ip(host.namespace, f"addr add {host.address}/24 dev lan0")
        self.ip(host.namespace, "link set lan0 up")
        if rate is not None:
            for namespace, device in ((self.switch, port), (host.namespace, "lan0")):
                words = ["tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst", "128kb"]
                call(["ip", "netns", "exec", namespace, *words, "latency", "50ms"])
        return host

    def drop_multicast(self) -> None:
        """Make the switch lose every multicast packet, as some access points do. Unicast over IPv4 goes on."""
        for host in self._hosts.values():
            self.bridge(f"link set dev {host.port} mcast_flood off")
        # A querier would make it learn who wants which group; without one it forwards to nobody.
        self.ip(self.switch, f"link set {_BRIDGE} type bridge mcast_snooping 0")

    def isolate_clients(self) -> None:
        """Let no host reach another, as guest networks do."""
        for host in self._hosts.values():
            self.bridge(f"link set dev {host.port} isolated on")

    def namespace(self, suffix: str) -> str:
        """A new namespace that is gone when the LAN is."""
        name = f"{self._name}-{suffix}"
        call(["ip", "netns", "add", name])
        self._namespaces.append(name)
        # Addresses count at once, without the second or two that asking for duplicates takes.
        quick = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad"
        call(["ip", "netns", "exec", name, "sh", "-c", quick])
        return name

    def ip(self, namespace: str, words: str) -> str:
        """`ip` inside a namespace; its output."""
        return call(["ip", "-n", namespace, *words.split()])

    def bridge(self, words: str) -> str:
        """`bridge` inside the switch; its output."""
        return call(["ip", "netns", "exec", self.switch, "bridge", *words.split()])


class Host:
    """One machine of a LAN; `lan0` is its interface, `address` its IPv4 address there."""

    def __init__(self, lan: Lan, name: str, namespace: str, port: str, address: str) -> None:
        self.lan = lan
        self.name = name
        self.namespace = namespace
        self.port = port
        self.address = address
        self.relay: Relay | None = None
        self._processes: list[subprocess.Popen[str]] = []

    def command(self, words: Sequence[str]) -> list[str]:
        """The command line that runs another one on this host."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def run(self, words: Sequence[str], environ: Mapping[str, str] | None = None, timeout_s: float = 60.0) -> str:
        """Run a program here to its end; its standard output.

        Raises:
            AssertionError: it failed; with what it said.

        """
        return call(self.command(words), environ, timeout_s)

    def start(
        self, words: Sequence[str], environ: Mapping[str, str] | None = None, errors: int | None = None
    ) -> subprocess.Popen[str]:
        """Start a program here; it is killed when the LAN, or this process, ends. Input and output are pipes.

        `errors`: as `subprocess.Popen` has `stderr`.
        """
        process = subprocess.Popen(
            self.command(words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environ,
            encoding="utf-8",
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (it calls the kernel alone)
        )
        self._processes.append(process)
        return process

    def cut(self) -> None:
        """Pull the cable."""
        self.lan.ip(self.lan.switch, f"link set {self.port} down")

    def heal(self) -> None:
        """Plug it in again."""
        self.lan.ip(self.lan.switch, f"link set {self.port} up")

    def add_virtual(self, name: str, address: str) -> None:
        """An interface that leads nowhere, as docker0 does. `address` with its prefix: `172.17.0.1/16`."""
        inside = f"{self.port}-{name}"[:15]
        self.lan.ip(self.namespace, f"link add {name} type veth peer name {inside} netns {self.lan.switch}")
        self.lan.ip(self.lan.switch, f"link set {inside} up")
        self.lan.ip(self.namespace, f"addr add {address} dev {name}")
        self.lan.ip(self.namespace, f"link set {name} up")

    def add_cable(self, other: Host, mine: str, theirs: str, subnet: str = "10.99.0", rate: str | None = None) -> None:
        """A second path: a cable straight to another host, `mine` and `theirs` its interfaces' names."""
        self.lan.ip(self.namespace, f"link add {mine} type veth peer name {theirs} netns {other.namespace}")
        for number, (host, name) in enumerate(((self, mine), (other, theirs)), start=1):
            self.lan.ip(host.namespace, f"addr add {subnet}.{number}/24 dev {name}")
            self.lan.ip(host.namespace, f"link set {name} up")
            if rate is not None:
                words = f"tc qdisc add dev {name} root tbf rate {rate} burst 128kb latency 50ms"
                call(host.command(words.split()))

    def filter_port(self, port: int) -> None:
        """Answer nothing from a TCP port, as a firewall that drops does."""
        for family in ("-4", "-6"):
            words = f"{family} rule add ipproto tcp sport {port} blackhole"
            call(["ip", "-n", self.namespace, *words.split()])

    def end_processes(self) -> None:
        """Kill what was started here and wait for it."""
        for process in self._processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def call(words: Sequence[str], environ: Mapping[str, str] | None = None, timeout_s: float = IP_TIMEOUT_S) -> str:
    """Run a program; its standard output.

    Raises:
        AssertionError: it failed; with what it said.

    """
    ran = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=timeout_s, check=False)
    if ran.returncode:
        raise AssertionError(f"{' '.join(words)}: exit code {ran.returncode}\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def sweep() -> None:
    """Remove what processes that were killed have left."""
    for name in _names():
        match = _NAME.fullmatch(name)
        if match and not Path(f"/proc/{match[1]}").exists():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _names() -> list[str]:
    try:
        return os.listdir("/var/run/netns")
    except OSError:
        return []


def _die_with_parent() -> None:
    """In a child, before it becomes its program: be killed when the test process is."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _unique() -> str:
    return f"hyperlane-{os.getpid()}-{next(_numbers)}"
