"""A few bytes of a remote file, kept on disk: written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from hyperlane.errors import TransferError
from hyperlane.files import replace_file


def keep(place: Path, data: bytes) -> None:
    """Write `data` to `place`, in place of what was there.

    Raises:
        TransferError: the folder cannot be written.

    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, data)
    except OSError as error:
        raise TransferError(f"{place.name} cannot be kept in {place.parent}: {error}") from error
