"""A checkpoint of which the texts and the headers of the weights are here: facts, tokenizer, and each tensor's place.

Keeps both on disk, so that a second look needs no byte. Fetches no weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hyperlane.errors import MalformedModel, TransferError
from hyperlane.models.checkpoint_header import MAX_TEXT_BYTES, TEXTS, CheckpointHeader, checkpoint_fingerprint
from hyperlane.models.checkpoint_table import INDEX, SINGLE, read_shards
from hyperlane.models.http_ranges import open_ranges
from hyperlane.models.kept_bytes import keep
from hyperlane.models.ranges import RemoteFile, TensorPlace
from hyperlane.models.remote_model import RemoteModel
from hyperlane.models.safetensors_header import LENGTH_BYTES, StoredTensor, header_bytes, read_header
from hyperlane.models.whole_file import Wanted, bring_file

FIRST_BYTES = 1 << 18
"""Read at once of each file of weights: most headers end within."""


class RemoteCheckpoint(CheckpointHeader):
    """As `TensorPlaces` it says where workers find their tensors."""

    def __init__(
        self,
        path: Path,
        texts: Mapping[str, str],
        headers: Mapping[str, Mapping[str, StoredTensor]],
        files: Mapping[str, RemoteFile],
    ) -> None:
        """`files`: by name those that `headers` are of. The rest, and what it raises, is as of `CheckpointHeader`."""
        super().__init__(path, texts, headers)
        self._remote = tuple(files[name] for name in self.files)

    @property
    def fingerprint(self) -> str:
        """The same that a copy of the files has, on any machine: hubs state what goes into it."""
        texts = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in self.texts.items()}
        return checkpoint_fingerprint(texts | {n: f.digest for n, f in zip(self.files, self._remote, strict=True)})

    @property
    def remote_files(self) -> Sequence[RemoteFile]:
        """As `TensorPlaces`."""
        return self._remote

    def place(self, name: str) -> TensorPlace | None:
        """As `TensorPlaces`: nobody has read the bytes yet, so there is no digest."""
        return None if self.info(name) is None else self.required_place(name)

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """As `TensorSource.read`, over the network. Raises TransferError too."""
        place = self.required_place(name)
        with open_ranges(self._remote[place.file]) as ranges:
            return np.frombuffer(ranges.read(place.offset, place.info.nbytes), np.uint8)


def open_remote_checkpoint(model: RemoteModel, folder: Path) -> RemoteCheckpoint:
    """Read a checkpoint's texts and headers; `folder` is where they are kept, and found the next time.

    Raises:
        TransferError: they cannot be had, or the hub states no hash of a file of weights.
        MalformedModel, UnsupportedModel: as `CheckpointHeader`.

    """
    wanted = dict(zip(model.paths, model.wanted, strict=True))
    texts = {name: _text(wanted[name], folder / name) for name in TEXTS if name in wanted}
    shards: tuple[str, ...] = (SINGLE,)
    if INDEX in wanted:
        shards = read_shards(_text(wanted[INDEX], folder / INDEX), f"{model.name}/{INDEX}")
    for name in shards:
        if name not in wanted:
            raise MalformedModel(f"{model.name}: its index names '{name}', which the repository does not have")
        if not wanted[name].remote.digest:
            raise TransferError(f"the hub states no hash of {model.name}/{name}: download it with `hyperlane pull`")
    files = {name: wanted[name].remote for name in shards}
    headers = {name: _header(file, folder / f"{name}.header", name) for name, file in files.items()}
    return RemoteCheckpoint(Path(model.name), texts, headers, files)


def _text(wanted: Wanted, kept: Path) -> str:
    if wanted.remote.size > MAX_TEXT_BYTES:
        raise MalformedModel(f"{kept.name}: more than {MAX_TEXT_BYTES >> 20} MiB of text")
    bring_file(wanted, kept)
    try:
        return kept.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedModel(f"{kept.name} is no text in UTF-8") from error


def _header(file: RemoteFile, kept: Path, label: str) -> Mapping[str, StoredTensor]:
    if kept.is_file():
        try:
            return read_header(kept.read_bytes(), file.size, label)
        except MalformedModel:
            kept.unlink(missing_ok=True)  # damaged on this disk: read anew
    with open_ranges(file) as ranges:
        data = ranges.read(0, min(max(FIRST_BYTES, LENGTH_BYTES), file.size))
        length = header_bytes(data, file.size, label)
        data += ranges.read(len(data), max(0, length - len(data)))
    header = read_header(data[:length], file.size, label)
    keep(kept, data[:length])
    return header
