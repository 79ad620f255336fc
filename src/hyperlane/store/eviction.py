"""What of a cache goes when room is short. Pure; knows no file."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace


class Kind(enum.StrEnum):
    """What an entry holds: whole tensors of a model, tensors on their way, or weights in the engine's form."""

    TENSORS = "tensors"
    PARTIAL = "partial"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that goes or stays as one. `where`: its file or folder, below the cache.

    `model`: the fingerprint, `name` what people call it; empty when nobody wrote it down. `spare`: tensors of a model
    whose weights are there in the engine's form too. `used_s`: when it was last used, seconds of the epoch.
    """

    kind: Kind
    where: str
    model: str
    name: str
    nbytes: int
    used_s: float
    in_use: bool = False
    spare: bool = False


def by_model(entries: Iterable[Entry]) -> list[Entry]:
    """One entry for all of a kind that a model has, the largest first; `where` is empty."""
    groups: dict[tuple[str, Kind, bool, bool], Entry] = {}
    for one in entries:
        key = (one.model, one.kind, one.in_use, one.spare)
        had = groups.get(key)
        nbytes, used_s = (had.nbytes, had.used_s) if had else (0, 0.0)
        groups[key] = replace(one, where="", nbytes=nbytes + one.nbytes, used_s=max(used_s, one.used_s))
    return sorted(groups.values(), key=lambda group: (-group.nbytes, group.model, group.kind))


def to_evict(entries: Iterable[Entry], excess: int) -> list[Entry]:
    """What must go for `excess` bytes to be free: spare copies first, then what was used least recently.

    Never what is in use, so it may free less.
    """
    chosen: list[Entry] = []
    order = sorted((e for e in entries if not e.in_use), key=lambda e: (not e.spare, e.used_s, e.where))
    for entry in order:
        if excess <= 0:
            break
        chosen.append(entry)
        excess -= entry.nbytes
    return chosen
