"""A model that a user named, opened: whole on this machine, or read where it lies, as far as a head needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hyperlane.models.digests import DigestCache
from hyperlane.models.download import Progress
from hyperlane.models.http_ranges import NoRanges
from hyperlane.models.remote_checkpoint import RemoteCheckpoint, open_remote_checkpoint
from hyperlane.models.remote_gguf import RemoteGguf, open_remote
from hyperlane.models.remote_model import RemoteModel
from hyperlane.models.resolve import Library, locate, name_of, resolve
from hyperlane.models.source import ModelFiles, open_model


@dataclass(frozen=True, slots=True)
class Opened:
    """`path` is None for a model whose weights are not on this machine. Close it when its tensors were read."""

    model: ModelFiles | RemoteGguf | RemoteCheckpoint
    path: Path | None
    name: str

    def close(self) -> None:
        """Let go of the model's file. Idempotent."""
        if not isinstance(self.model, RemoteGguf | RemoteCheckpoint):
            self.model.close()


def open_asked(
    asked: str, library: Library, digests: DigestCache, progress: Progress | None = None, *, whole: bool
) -> Opened:
    """Open what a user named. `whole` False: of models that are elsewhere only what describes them is fetched.

    Raises:
        UnknownModel: there is no such model.
        TransferError: it cannot be had.
        MalformedModel, UnsupportedModel: it cannot be used.

    """
    found = resolve(asked, library, progress) if whole else locate(asked, library, progress)
    if isinstance(found, RemoteModel):
        try:
            name = found.name if found.is_checkpoint else Path(found.name).stem
            return Opened(_open_there(found, library), None, name)
        except NoRanges:
            found = resolve(asked, library, progress)
    return Opened(open_model(found, digests), found, name_of(asked, found))


def _open_there(found: RemoteModel, library: Library) -> RemoteGguf | RemoteCheckpoint:
    if found.is_checkpoint:
        return open_remote_checkpoint(found, library.headers / found.key)
    (wanted,) = found.wanted
    return open_remote(wanted.remote, found.name, library.headers)
