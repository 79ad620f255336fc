"""The models that were downloaded to this machine from a hub or a URL: each in a folder of its own, with its papers.

Brings them, finds them again without a network, lists and removes them. The catalogue's files are `download`'s matter.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hyperlane.errors import TransferError, UnknownModel
from hyperlane.models import hub
from hyperlane.models.checkpoint_header import TEXTS, checkpoint_fingerprint
from hyperlane.models.digests import WHOLE, DigestCache, FileState
from hyperlane.models.http_ranges import look_at
from hyperlane.models.hub_choice import HubFile, choose
from hyperlane.models.kept_bytes import keep
from hyperlane.models.reference import HubReference, UrlReference
from hyperlane.models.remembered import Remembered
from hyperlane.models.remote_model import RemoteModel
from hyperlane.models.whole_file import Wanted, bring_file, check_space

log = logging.getLogger(__name__)

PAPERS = ".hyperlane.json"
"""In a model's folder, written last: where it is from, and its files. A folder without it is not whole."""

UNFINISHED = ".unfinished.json"
"""The same, written first: a folder that has it was given up, and the next download goes on there."""

_HUB, _URL = "hub", "url"
_UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f]')

Progress = Callable[[int, int], None]
"""Told (bytes here, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Papers:
    """Where a model is from. `origin`: a repository or a URL; `revisions`: those that were this commit when asked."""

    origin: str
    commit: str
    revisions: tuple[str, ...]
    files: tuple[HubFile, ...]
    licence: str = ""

    @property
    def is_checkpoint(self) -> bool:
        """Whether the files are those of a checkpoint."""
        return any(file.path == "config.json" for file in self.files)


@dataclass(frozen=True, slots=True)
class Kept:
    """A model that is here. `path`: what to open, a file or a checkpoint's folder. `whole` False: as far as it came."""

    papers: Papers
    folder: Path
    path: Path
    whole: bool = True

    @property
    def reference(self) -> str:
        """What to write for it."""
        if "://" in self.papers.origin:
            return self.papers.origin
        pick = "" if self.papers.is_checkpoint else self.papers.files[0].path
        return str(HubReference(self.papers.origin, pick=pick))

    @property
    def fingerprint(self) -> str:
        """The model's, from what was hashed when its files came."""
        if not self.papers.is_checkpoint:
            return self.papers.files[0].sha256
        counted = (file for file in self.papers.files if file.path in TEXTS or file.path.endswith(".safetensors"))
        return checkpoint_fingerprint({file.path: file.sha256 for file in counted})

    @property
    def nbytes(self) -> int:
        """Of all its files, or of what has come of them."""
        if self.whole:
            return sum(file.nbytes for file in self.papers.files)
        return _bytes_in(self.folder)


@dataclass(frozen=True, slots=True)
class _Found:
    """An answer to a reference: what is to be had, and what its papers will say."""

    papers: Papers
    wanted: tuple[Wanted, ...]

    @property
    def key(self) -> str:
        """Tells one content from another, so that a repository's new commit with the same file is no new model."""
        said = "\n".join(f"{f.path} {w.key}" for f, w in zip(self.papers.files, self.wanted, strict=True))
        return hashlib.sha256(said.encode()).hexdigest()[:12]


class Shelf:
    """The folder of downloaded models. Any number of processes may use it at once."""

    def __init__(self, models: Path, digests: DigestCache | None = None, *, offline: bool = False) -> None:
        """Make nothing. `digests`: told of files whose hash is known. `offline`: ask nobody, use what is here."""
        self._models = models
        self._digests = digests
        self._offline = offline

    def bring(self, reference: HubReference | UrlReference, progress: Progress | None = None) -> Path:
        """The model's file or folder on this machine, downloaded if it is not here.

        A hub that does not answer is no error when a copy is here.

        Raises:
            UnknownModel: there is no such model.
            TransferError: it cannot be had.

        """
        found = self._ask(reference)
        if isinstance(found, Kept):
            return found.path
        folder = self._folder(found)
        papers = found.papers
        if not _is_whole(papers, folder):
            papers = self._download(found, folder, progress or (lambda _done, _total: None))
        self._write(papers, folder)
        (folder / UNFINISHED).unlink(missing_ok=True)
        return _to_open(found.papers, folder)

    def locate(self, reference: HubReference | UrlReference) -> Path | RemoteModel:
        """As `bring`, but downloads nothing: a model that is not here is told where it is, or was when asked last."""
        memory = Remembered(self._models / "seen")
        try:
            found = self._ask(reference)
        except hub.Unreachable:
            known = None if self._offline else memory.find(str(reference))
            if known is None:
                raise
            log.warning("%s cannot be asked; what was read of it before is used", reference)
            return known
        if isinstance(found, Kept):
            return found.path
        folder = self._folder(found)
        if _is_whole(found.papers, folder):
            return _to_open(found.papers, folder)
        name = found.papers.files[0].name if not found.papers.is_checkpoint else found.papers.origin.rsplit("/", 1)[-1]
        paths = tuple(file.path for file in found.papers.files)
        model = RemoteModel(name, found.key, found.wanted, paths, found.papers.is_checkpoint)
        memory.keep(str(reference), model)
        return model

    def kept(self) -> list[Kept]:
        """What is here whole, by origin."""
        return sorted(self._kept(), key=lambda kept: (kept.papers.origin, kept.reference))

    def unfinished(self) -> list[Kept]:
        """Downloads that were given up, or go on just now in another process."""
        return [replace(kept, whole=False) for kept in self._kept(UNFINISHED)]

    def remove(self, kept: Kept) -> None:
        """Remove a model's folder, and those above that are empty then.

        Raises:
            TransferError: its files cannot be removed.

        """
        try:
            (kept.folder / PAPERS).unlink(missing_ok=True)  # first: what is left after an error is no whole model
            shutil.rmtree(kept.folder)
            for parent in kept.folder.parents:
                if parent == self._models or any(parent.iterdir()):
                    break
                parent.rmdir()
        except OSError as error:
            raise TransferError(f"{kept.folder} cannot be removed: {error}") from error

    # --- what a reference means ----------------------------------------------------------------------------------

    def _ask(self, reference: HubReference | UrlReference) -> _Found | Kept:
        """What its server says of it now; where that cannot be asked, the copy that is here."""
        try:
            if self._offline:
                raise hub.Unreachable(f"{reference} is not on this machine, and --offline forbids to download it")
            return _look_up(reference) if isinstance(reference, HubReference) else _look_at(reference)
        except hub.Unreachable:
            kept = self._copy_of(reference)
            if kept is None:
                raise
            if not self._offline:
                log.warning("%s cannot be asked; the copy on this machine is used", reference)
            return kept

    def _copy_of(self, reference: HubReference | UrlReference) -> Kept | None:
        """The newest that is here of what a reference means.

        Raises:
            UnknownModel: several models of the repository are here, and the reference does not say which.

        """
        newest = sorted(self._kept(), key=lambda kept: (kept.folder / PAPERS).stat().st_mtime, reverse=True)
        if isinstance(reference, UrlReference):
            return next((kept for kept in newest if kept.papers.origin == reference.url), None)
        here = [kept for kept in newest if _is_of(kept.papers, reference)]
        if not here:
            return None
        files = {file.path: file for kept in reversed(here) for file in kept.papers.files}
        try:
            choice = choose(list(files.values()), reference.pick, f"{reference.repo}, as far as it is on this machine,")
        except UnknownModel:
            if reference.pick:
                return None
            raise
        return next((kept for kept in here if set(choice.files) <= set(kept.papers.files)), None)

    # --- the folder ----------------------------------------------------------------------------------------------

    def _folder(self, found: _Found) -> Path:
        if "://" in found.papers.origin:
            return self._models / _URL / found.key
        return self._models / _HUB / found.papers.origin / found.key

    def _kept(self, papers_name: str = PAPERS) -> Iterator[Kept]:
        folders = f"{_HUB}/*/*/*/{papers_name}", f"{_URL}/*/{papers_name}"
        for place in [found for pattern in folders for found in self._models.glob(pattern)]:
            try:
                said = json.loads(place.read_text(encoding="utf-8"))
                files = tuple(HubFile(**file) for file in said.pop("files"))
                papers = Papers(**said | {"files": files, "revisions": tuple(said["revisions"])})
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.warning("%s cannot be read; what is beside it is passed over: %s", place, error)
                continue
            folder = place.parent
            if papers_name == UNFINISHED or _is_whole(papers, folder):
                yield Kept(papers, folder, _to_open(papers, folder))

    def _download(self, found: _Found, folder: Path, progress: Progress) -> Papers:
        """Bring every file; the papers, with the hash of each."""
        files, total, before = [], sum(wanted.remote.size for wanted in found.wanted), 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            here = _bytes_in(folder)
        except OSError as error:
            raise TransferError(f"{found.papers.origin} cannot be stored in {folder}: {error}") from error
        check_space(folder, total - min(here, total))
        self._write(found.papers, folder, UNFINISHED)
        for file, wanted in zip(found.papers.files, found.wanted, strict=True):
            target = folder / _local(file, found.papers)
            digest = bring_file(wanted, target, lambda done, before=before: progress(before + done, total))  # type: ignore[misc]
            files.append(replace(file, sha256=digest))
            before += wanted.remote.size
            if self._digests is not None:
                self._digests.save(FileState.of(target, target.stat()), {WHOLE: digest}, settled=True)
        return replace(found.papers, files=tuple(files))

    def _write(self, papers: Papers, folder: Path, name: str = PAPERS) -> None:
        """The papers, with the revisions and hashes that were known before."""
        place = folder / name
        try:
            known = json.loads(place.read_text(encoding="utf-8")) if place.exists() else asdict(papers)
            said = asdict(papers) | {"revisions": sorted({*known["revisions"], *papers.revisions})}
            said["files"] = known["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TransferError(f"{place} cannot be read: {error}; remove its folder and try again") from error
        keep(place, json.dumps(said, indent=1).encode())


def _look_up(reference: HubReference) -> _Found:
    listing = hub.look_up(reference)
    choice = choose(listing.files, reference.pick, str(HubReference(reference.repo, reference.revision)))
    wanted = tuple(Wanted(hub.remote_file(listing, file), file.git) for file in choice.files)
    papers = Papers(listing.repo, listing.commit, (reference.revision,), choice.files, listing.licence)
    return _Found(papers, wanted)


def _look_at(reference: UrlReference) -> _Found:
    remote = look_at(reference.url)
    papers = Papers(reference.url, "", (), (HubFile(reference.name, remote.size),))
    return _Found(papers, (Wanted(remote),))


def _bytes_in(folder: Path) -> int:
    """What the files of a folder take now, while others may be at work in it."""
    total = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # renamed since it was listed
            total += path.stat().st_size
    return total


def _is_whole(papers: Papers, folder: Path) -> bool:
    return (folder / PAPERS).exists() and all((folder / _local(file, papers)).is_file() for file in papers.files)


def _is_of(papers: Papers, reference: HubReference) -> bool:
    if papers.origin != reference.repo:
        return False
    return reference.revision in papers.revisions or papers.commit.startswith(reference.revision)


def _to_open(papers: Papers, folder: Path) -> Path:
    return folder if papers.is_checkpoint else folder / _local(papers.files[0], papers)


def _local(file: HubFile, papers: Papers) -> str:
    """A file's name in the model's folder: a GGUF file's without its folder of the repository, safe on any system."""
    return file.path if papers.is_checkpoint else _UNSAFE.sub("_", file.name)
