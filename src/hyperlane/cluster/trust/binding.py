"""What tells this machine from others, as far as the system says. Knows nothing of identities."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_NOTHING = {"", "uninitialized", "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"}
_LINUX = (
    ("machine-id", Path("/etc/machine-id")),
    ("machine-id", Path("/var/lib/dbus/machine-id")),
    ("product-uuid", Path("/sys/class/dmi/id/product_uuid")),
    ("device-tree-serial", Path("/sys/firmware/devicetree/base/serial-number")),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """A value that other machines do not have, and which of the system's facts it is."""

    source: str
    value: str


def this_machine(named: str | None = None) -> Machine | None:
    """What this machine is told apart by: what the user says, else what the system does; None when neither does.

    Containers of one image may all say the same, or nothing: that is what the user's own word is for.
    """
    if named:
        return Machine("named", named)
    if sys.platform == "win32":
        return _of("machine-guid", _windows_guid())
    if sys.platform == "darwin":
        return _of("platform-uuid", _mac_uuid())
    return next((machine for source, path in _LINUX if (machine := _of(source, _read(path)))), None)


def _of(source: str, value: str) -> Machine | None:
    value = value.strip("\0 \n").lower()
    return None if value in _NOTHING else Machine(source, value)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _mac_uuid() -> str:
    command = ["/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r'"IOPlatformUUID" = "([^"]+)"', said)
    return found[1] if found else ""


def _windows_guid() -> str:
    if sys.platform != "win32":
        return ""
    import winreg

    try:
        place = winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, os.path.join("SOFTWARE", "Microsoft", "Cryptography"))
        with place:
            return str(winreg.QueryValueEx(place, "MachineGuid")[0])
    except OSError:
        return ""
