"""From what a user wrote for a model to what can be opened: on this machine, or where it lies elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hyperlane.errors import TransferError, UnknownModel
from hyperlane.models import catalogue
from hyperlane.models.catalogue import CatalogueEntry
from hyperlane.models.digests import DigestCache
from hyperlane.models.download import Progress, fetch
from hyperlane.models.reference import HubReference, LocalReference, Reference, UrlReference, parse
from hyperlane.models.remote_model import RemoteModel
from hyperlane.models.shelf import Shelf


@dataclass(frozen=True, slots=True)
class Library:
    """Where models are kept on this machine, and whether others may be asked for what is not here.

    `digests`: told the hashes of files that were checked when they came, so that they are not hashed again.
    """

    models: Path
    offline: bool = False
    digests: DigestCache | None = None

    @property
    def shelf(self) -> Shelf:
        """What was downloaded from hubs and URLs."""
        return Shelf(self.models, self.digests, offline=self.offline)

    @property
    def headers(self) -> Path:
        """What was read of models that are elsewhere."""
        return self.models / "headers"


def resolve(text: str | Path, library: Library, progress: Progress | None = None) -> Path:
    """The model's file, or a checkpoint's folder, on this machine; downloaded if it is not here yet.

    Raises:
        UnknownModel: there is no such model; the message says what would do.
        TransferError: it cannot be had.

    """
    reference = parse(str(text))
    if isinstance(reference, HubReference | UrlReference):
        return library.shelf.bring(reference, progress)
    return _here(reference, library, progress)


def locate(text: str | Path, library: Library, progress: Progress | None = None) -> Path | RemoteModel:
    """As `resolve`, but models of hubs and URLs that are not here stay where they are."""
    reference = parse(str(text))
    if isinstance(reference, HubReference | UrlReference):
        return library.shelf.locate(reference)
    return _here(reference, library, progress)


def name_of(text: str, path: Path) -> str:
    """What a model is called here: its catalogue name, a checkpoint's repository, or its file without the ending."""
    entry = catalogue.find(text)
    if entry is not None:
        return entry.name
    if not path.is_dir():
        return path.stem
    reference = parse(text)
    return reference.repo.rsplit("/", 1)[-1] if isinstance(reference, HubReference) else path.resolve().name


def copy_of(fingerprint: str, library: Library) -> Path | None:
    """A model of that fingerprint that was downloaded to this machine, whatever it was called then."""
    for entry in catalogue.installed(library.models):
        if entry.sha256 == fingerprint:
            return entry.path(library.models)
    return next((kept.path for kept in library.shelf.kept() if kept.fingerprint == fingerprint), None)


def _here(reference: Reference, library: Library, progress: Progress | None) -> Path:
    if isinstance(reference, CatalogueEntry):
        if library.offline and not reference.is_installed(library.models):
            raise TransferError(f"{reference.name} is not on this machine, and --offline forbids to download it")
        return fetch(reference, library.models, progress)
    assert isinstance(reference, LocalReference)
    return _to_open(reference.path)


def _to_open(path: Path) -> Path:
    """A file, a checkpoint's folder, or the only GGUF file in a folder."""
    if not path.is_dir() or (path / "config.json").is_file():
        return path
    files = sorted(found for found in path.glob("*.gguf") if found.is_file())
    if len(files) == 1:
        return files[0]
    hint = f"give one of its files: {', '.join(file.name for file in files)}" if files else "it holds no model"
    raise UnknownModel(f"{path} is a folder; {hint}")
