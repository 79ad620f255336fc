"""Where values come from: variables, the configuration file and flags, read once and made into roles.

The only reader of `HYPERLANE_*` variables. Precedence: flag, variable (`HYPERLANE_SERVE_SLOTS`), file (`[serve]`
`slots`), default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from hyperlane.config.roles import (
    ApiConfig,
    CacheConfig,
    DiscoveryConfig,
    JoinConfig,
    Paths,
    ServeConfig,
    WorkerConfig,
)
from hyperlane.config.setting import known_of, read_one
from hyperlane.said import refuse_unknown, said_by_file, said_by_variables

Role = TypeVar("Role", Paths, ServeConfig, WorkerConfig, JoinConfig, DiscoveryConfig, CacheConfig, ApiConfig)
_ROLES = (Paths, ServeConfig, WorkerConfig, JoinConfig, DiscoveryConfig, CacheConfig, ApiConfig)


def meaning_of(role: type[ServeConfig | WorkerConfig | JoinConfig | ApiConfig], name: str) -> str:
    """What a field means, with its default, for a flag's help."""
    found = known_of(role)[name]
    default = "" if found.default in (None, (), False) else f" (default: {found.default})"
    return f"{found.metadata['meaning']}{default}"


def load(role: type[Role], file: Path | None = None, /, **flags: object) -> Role:
    """Build a role's configuration from this process's variables, the file and flags (None: not given).

    Raises:
        ConfigError: a key is unknown, a value is out of its range, or the file cannot be read.

    """
    return Settings.read(os.environ, file).resolve(role, **flags)


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What the variables and the file say: by section and key, each with the place that said it."""

    said: Mapping[tuple[str, str], tuple[object, str]]
    home: Path | None = None

    @classmethod
    def read(cls, environ: Mapping[str, str], file: Path | None = None) -> Settings:
        """Read the variables, and the file given here, by `HYPERLANE_CONFIG`, or found in the usual place.

        Raises:
            ConfigError: a key is unknown, or the file cannot be read.

        """
        home = Path(environ["HYPERLANE_HOME"]).expanduser() if environ.get("HYPERLANE_HOME") else None
        asked = file or (Path(environ["HYPERLANE_CONFIG"]) if environ.get("HYPERLANE_CONFIG") else None)
        usual = (home or platformdirs.user_config_path("hyperlane", appauthor=False)) / "config.toml"
        known = {role.section: tuple(known_of(role)) for role in _ROLES}
        said = said_by_file(asked or usual, known, must_exist=asked is not None)
        said.update(said_by_variables(environ, known))
        return cls(said, home)

    def resolve(self, role: type[Role], **flags: object) -> Role:
        """Build a role's configuration; a flag that is None was not given.

        Raises:
            ConfigError: a value is out of its range or a flag is unknown.

        """
        known = known_of(role)
        chosen: dict[str, Any] = {}
        for (section, name), (value, place) in self.said.items():
            if section == role.section:
                chosen[name] = read_one(known[name], value, place)
        for name, value in flags.items():
            if value is not None and name != "paths":
                refuse_unknown(name, known, "flag")
                chosen[name] = read_one(known[name], value, "--" + name.replace("_", "-"))
        if role is Paths:
            return role(**{**_home_paths(self.home), **chosen})
        if "paths" in {f.name for f in fields(role)}:
            chosen["paths"] = flags.get("paths") or self.resolve(Paths)
        return role(**chosen)


def _home_paths(home: Path | None) -> dict[str, Path]:
    return {"cache": home / "cache", "state": home / "state"} if home else {}
