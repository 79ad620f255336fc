"""A model that is elsewhere, as data."""

from __future__ import annotations

from dataclasses import dataclass

from hyperlane.models.whole_file import Wanted


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that is elsewhere, with all that is needed to read it there. `wanted` and `paths` go together.

    `key` tells one content from another.
    """

    name: str
    key: str
    wanted: tuple[Wanted, ...]
    paths: tuple[str, ...]
    is_checkpoint: bool = False
