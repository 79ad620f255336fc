"""What a check says. Pure data."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Level(enum.StrEnum):
    """How much a finding matters: nothing, good to know, slows or may break a cluster, stops it."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result. `found`: what is so; `means`: what follows from it; `do`: what to do; the last two may be empty."""

    check: str
    level: Level
    found: str
    means: str = ""
    do: str = ""


def exit_code(findings: Iterable[Finding]) -> int:
    """What `hyperlane doctor` ends with: 1 when something stops a cluster, else 0."""
    return int(any(one.level is Level.PROBLEM for one in findings))


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, found)


def note(check: str, found: str, means: str = "", do: str = "") -> Finding:
    """Good to know."""
    return Finding(check, Level.NOTE, found, means, do)


def warning(check: str, found: str, means: str, do: str) -> Finding:
    """It works, but not as it could."""
    return Finding(check, Level.WARNING, found, means, do)


def problem(check: str, found: str, means: str, do: str) -> Finding:
    """It cannot work like this."""
    return Finding(check, Level.PROBLEM, found, means, do)
