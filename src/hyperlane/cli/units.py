"""The systemd unit of a worker, as text. Pure; knows no system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NAME = "hyperlane-worker.service"

_USAGE_ERROR = 2
_HARDENING = (
    "NoNewPrivileges=yes",
    "ProtectSystem=full",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectControlGroups=yes",
    "RestrictSUIDSGID=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "LockPersonality=yes",
)
"""What a system unit gives up. Not MemoryDenyWriteExecute nor PrivateDevices: GPU runtimes compile and open devices."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What the unit runs. `run_as`: the user of a system unit; None makes a unit for a user's own manager."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    run_as: str | None = None

    def text(self) -> str:
        """The unit file."""
        system = self.run_as is not None
        lines = [
            "[Unit]",
            "Description=Hyperlane worker: lends this machine's device to a head",
            *(["Wants=network-online.target", "After=network-online.target"] if system else []),
            "",
            "[Service]",
            "Type=exec",
            f"ExecStart={' '.join(map(quoted, self.command))}",
            *(f"Environment={quoted(f'{name}={value}')}" for name, value in sorted(self.environment.items())),
            *([f"User={self.run_as}"] if system else []),
            "Restart=always",
            "RestartSec=5",
            f"RestartPreventExitStatus={_USAGE_ERROR}",
            # The processes of a host's devices must get one signal, not the supervisor's and systemd's.
            "KillMode=mixed",
            "TimeoutStopSec=60",
            *(_HARDENING if system else ["NoNewPrivileges=yes"]),
            "",
            "[Install]",
            f"WantedBy={'multi-user' if system else 'default'}.target",
            "",
        ]
        return "\n".join(lines)


def quoted(word: str) -> str:
    """A word as systemd reads it back: quoted where needed, `%` and `$` doubled.

    Raises:
        ValueError: it has a line's end or another control character, which no unit can hold.

    """
    if any(ord(c) < 32 for c in word):
        raise ValueError("a control character cannot be part of a unit file")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    plain = word and all(c.isalnum() or c in "@_-./:=,+" for c in word)
    return escaped if plain else f'"{escaped}"'
