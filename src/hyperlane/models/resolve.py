"""From what a user wrote for a model, a name or a path, to a file on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from hyperlane.errors import UnknownModel
from hyperlane.models import catalogue
from hyperlane.models.download import Progress, fetch


def resolve(name_or_path: str | Path, models_dir: Path, progress: Progress | None = None) -> Path:
    """The model's file; a model of the catalogue is downloaded if it is not here yet.

    A name of the catalogue wins over a file of the same name; write `./name` for the file.

    Raises:
        UnknownModel: neither a known name nor a file; the message lists the names.
        TransferError: the download failed.

    """
    entry = catalogue.find(str(name_or_path))
    if entry is not None:
        return fetch(entry, models_dir, progress)
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        files = sorted(found.name for found in path.glob("*.gguf"))
        hint = f"give one of its files: {', '.join(files)}" if files else "it holds no GGUF file"
        raise UnknownModel(f"{path} is a folder; {hint}")
    if _looks_like_path(str(name_or_path)):
        raise UnknownModel(f"there is no file {path}; give a GGUF file, or a name: {_names()}")
    return fetch(catalogue.required(str(name_or_path)), models_dir, progress)


def _looks_like_path(text: str) -> bool:
    separators = (os.sep, os.altsep or os.sep)
    return text.lower().endswith(".gguf") or text.startswith((".", "~")) or any(mark in text for mark in separators)


def _names() -> str:
    return ", ".join(entry.name for entry in catalogue.CATALOGUE)
