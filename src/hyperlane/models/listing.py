"""What `hyperlane models` shows and `hyperlane rm` removes: the catalogue and what was downloaded, in one list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hyperlane.errors import TransferError, UnknownModel
from hyperlane.models.catalogue import CATALOGUE, CatalogueEntry
from hyperlane.models.reference import HubReference, LocalReference, Reference, parse
from hyperlane.models.shelf import Kept, Shelf


@dataclass(frozen=True, slots=True)
class Row:
    """A model by name. `path`: where it is, or would be; `source`: where it is from; `version`: a commit, if any."""

    name: str
    about: str
    nbytes: int
    licence: str
    installed: bool
    path: Path
    source: str
    version: str = ""

    def plain(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "name": self.name,
            "about": self.about,
            "bytes": self.nbytes,
            "licence": self.licence,
            "installed": self.installed,
            "path": str(self.path),
            "source": self.source,
            "version": self.version,
        }

    def text(self) -> str:
        """For people: what it is, or where it is."""
        return self.about or f"{self.path}" + (f" ({self.licence})" if self.licence else "")


def rows(models: Path) -> list[Row]:
    """The catalogue, whether here or not, then what else is here, and downloads that were given up."""
    shelf = Shelf(models)
    return [_of_entry(entry, models) for entry in CATALOGUE] + [_of_kept(k) for k in shelf.kept() + shelf.unfinished()]


def find(name: str, models: Path) -> list[Row]:
    """What is here that a name means, unfinished downloads included: also older versions of a repository's file.

    Raises:
        UnknownModel: none is here, or it is a file that was not downloaded by Hyperlane.

    """
    here = [row for row in rows(models) if row.installed or row.source != "catalogue"]
    exact = [row for row in here if name.lower() == row.name.lower()]
    if exact:
        return exact
    known = ", ".join(row.name for row in here) or "none"
    not_here = UnknownModel(f"{name} is not among the models that were downloaded to this machine; there are: {known}")
    try:
        reference = parse(name)
    except UnknownModel:
        raise not_here from None
    found = [row for row in here if _means(reference, row)]
    if found:
        return found
    if isinstance(reference, LocalReference):
        raise UnknownModel(f"{name} is your own file, not one that Hyperlane downloaded: remove it yourself")
    raise not_here


def remove(row: Row, models: Path) -> None:
    """Remove a model that is here.

    Raises:
        TransferError: its files cannot be removed.

    """
    shelf = Shelf(models)
    kept = next((kept for kept in shelf.kept() + shelf.unfinished() if kept.path == row.path), None)
    if kept is not None:
        shelf.remove(kept)
        return
    try:
        row.path.unlink()
    except OSError as error:
        raise TransferError(f"{row.path} cannot be removed: {error}") from error


def _of_entry(entry: CatalogueEntry, models: Path) -> Row:
    return Row(
        entry.name,
        entry.about,
        entry.nbytes,
        entry.licence,
        entry.is_installed(models),
        entry.path(models),
        "catalogue",
    )


def _of_kept(kept: Kept) -> Row:
    papers = kept.papers
    source = papers.origin if "://" in papers.origin else f"hf.co/{papers.origin}"
    about = "" if kept.whole else f"unfinished: `hyperlane pull {kept.reference}` goes on, `rm` gives it up"
    return Row(kept.reference, about, kept.nbytes, papers.licence, kept.whole, kept.path, source, papers.commit)


def _means(reference: Reference, row: Row) -> bool:
    """Whether a reference in another spelling names a row: the repository and its quantisation or file."""
    own = parse(row.name)
    if not isinstance(reference, HubReference) or not isinstance(own, HubReference) or reference.repo != own.repo:
        return False
    return not reference.pick or _names(reference.pick, own.pick)


def _names(pick: str, path: str) -> bool:
    from hyperlane.models.hub_choice import quantisation

    return pick.lower() in {path.lower(), path.rsplit("/", 1)[-1].lower(), quantisation(path).lower()}
