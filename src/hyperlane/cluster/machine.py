"""What this machine has: memory that a worker may count on, and a name for it that its workers share.

Knows no device but the CPU; an engine measures its own device's memory.
"""

from __future__ import annotations

import hashlib
import ipaddress
import platform
import uuid
from pathlib import Path

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NETWORK = Path("/proc/self/ns/net")
_CGROUP = Path("/sys/fs/cgroup")
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
_DRIVER = Path("/proc/driver/nvidia/version")


def machine_id() -> str:
    """The same for all processes that share this machine's memory, in containers too; another on other machines."""
    try:
        facts = _BOOT_ID.read_text(encoding="ascii")
    except OSError:
        facts = f"{platform.node()} {uuid.getnode():x}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def host_id(machine_hash: str) -> str:
    """The same for processes that reach each other over loopback: one machine, one boot, one network namespace.

    `machine_hash`: what tells the machine from others. Disks that were copied, and containers with a network of their
    own, differ in the rest; where the system does not say that, the machine has to do.
    """
    said = f"{machine_hash}\0{_text(_BOOT_ID)}\0{_namespace()}"
    return hashlib.sha256(b"hyperlane host\0" + said.encode()).hexdigest()[:16]


def _namespace() -> str:
    try:
        return str(_NETWORK.stat().st_ino)
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host's ports."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def total_memory() -> int:
    """Bytes of RAM that this process could ever have."""
    return min(psutil.virtual_memory().total, _cgroup_limit() or 1 << 62)


def free_memory() -> int:
    """Bytes of RAM that can be had now without swapping, within the container's limit if there is one."""
    available = psutil.virtual_memory().available
    limit = _cgroup_limit()
    if limit is None:
        return int(available)
    return max(0, min(available, limit - _cgroup_used()))


def taken_memory() -> int:
    """Bytes of RAM that this process has now, mapped files that it has read included."""
    return int(psutil.Process().memory_info().rss)


def others_s() -> float:
    """Seconds that programs other than this process have computed since the machine started, of all cores together."""
    times, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return float(sum(getattr(times, kind, 0.0) for kind in _BUSY) - own.user - own.system)


def driver_version() -> str:
    """What the kernel says of a graphics driver; empty where it says nothing."""
    try:
        return _DRIVER.read_text(encoding="utf-8").partition("\n")[0].strip()
    except OSError:
        return ""


def _cgroup_limit() -> int | None:
    text = _cgroup_value("memory.max")
    return int(text) if text.isdecimal() else None


def _cgroup_used() -> int:
    """Bytes in use, less the page cache that gives way."""
    used = _cgroup_value("memory.current")
    cached = next(
        (line.split()[1] for line in _cgroup_value("memory.stat").splitlines() if "inactive_file" in line), "0"
    )
    return max(0, int(used or 0) - int(cached))


def _cgroup_value(name: str) -> str:
    try:
        return (_CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""
