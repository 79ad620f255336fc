"""The configuration: `roles` says what can be set, `settings` reads it from variables, the file and flags."""

from __future__ import annotations

from hyperlane.config.roles import (
    ApiConfig,
    CacheConfig,
    DiscoveryConfig,
    JoinConfig,
    Paths,
    ServeConfig,
    WorkerConfig,
)
from hyperlane.config.settings import Settings, load, meaning_of, usable_cores

__all__ = [
    "ApiConfig",
    "CacheConfig",
    "DiscoveryConfig",
    "JoinConfig",
    "Paths",
    "ServeConfig",
    "Settings",
    "WorkerConfig",
    "load",
    "meaning_of",
    "usable_cores",
]
