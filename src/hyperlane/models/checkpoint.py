"""A checkpoint on this machine: its weights mapped, digests of its content. The rest is `checkpoint_header`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from hyperlane.errors import MalformedModel, UnknownModel
from hyperlane.models.checkpoint_header import MAX_TEXT_BYTES, TEXTS, CheckpointHeader, checkpoint_fingerprint
from hyperlane.models.checkpoint_table import INDEX, SINGLE, read_shards
from hyperlane.models.digests import DigestCache
from hyperlane.models.mapping import MappedFile
from hyperlane.models.ranges import RemoteFile, TensorPlace
from hyperlane.models.safetensors_header import LENGTH_BYTES, StoredTensor, header_bytes, read_header


class Checkpoint(CheckpointHeader):
    """A `TensorSource` over a folder with config.json and one safetensors file, or several with an index.

    Opening reads the headers alone. Arrays that `read` returned stay valid after `close`: they keep the mapping alive.
    Files must not be truncated while they are open (no reader of a mapping can guard against that).
    """

    def __init__(self, path: Path, digests: DigestCache | None = None) -> None:
        """Map the files and check their headers.

        Args:
            path: the folder.
            digests: where content hashes are kept between runs; without it they are computed anew.

        Raises:
            UnknownModel: there is no such checkpoint, or a file cannot be opened.
            MalformedModel: a file is truncated, hostile or inconsistent.
            UnsupportedModel: an architecture, a variant or a type that Hyperlane does not run.

        """
        texts = {name: text for name in TEXTS if (text := _read_text(path / name)) is not None}
        with ExitStack() as opened:
            self._mapped: list[MappedFile] = []
            for file in _weight_files(path):
                self._mapped.append(MappedFile(file, digests))
                opened.callback(self._mapped[-1].discard)
            super().__init__(path, texts, {file.path.name: _header(file) for file in self._mapped})
            opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the mappings; they end when no array read from them is left. Idempotent."""
        for file in self._mapped:
            file.close()

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor's bytes as stored, a read-only view of the mapping.

        Raises:
            MalformedModel: the checkpoint has no such tensor.

        """
        place = self.required_place(name)
        return self._mapped[place.file].data[place.offset : place.offset + place.info.nbytes]

    @property
    def remote_files(self) -> Sequence[RemoteFile]:
        """As `TensorPlaces`: none, the files are here."""
        return ()

    def place(self, name: str) -> TensorPlace | None:
        """As `TensorPlaces`, with the tensor's digest."""
        if self.info(name) is None:
            return None
        return replace(self.required_place(name), digest=self.tensor_digest(name))

    # --- identity ----------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """What identifies the checkpoint, over the whole content of its files.

        It is read once (about 1 s a GB); with a `DigestCache` never again until a file changes.
        """
        texts = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in self.texts.items()}
        return checkpoint_fingerprint(texts | {file.path.name: file.digest for file in self._mapped})

    def tensor_digest(self, name: str) -> str:
        """Hex SHA-256 over one tensor's type, shape and bytes: equal tensors convert to equal matrices."""
        return self.digests([name])[name]

    def digests(self, names: Sequence[str]) -> Mapping[str, str]:
        """The digests of some tensors, hashing in parallel those that neither this object nor the cache knows.

        Raises:
            MalformedModel: the checkpoint has no tensor of such a name.

        """
        places = [self.required_place(name) for name in names]
        return {
            name: digest
            for number, file in enumerate(self._mapped)
            for name, digest in file.digests(place for place in places if place.file == number).items()
        }


def _read_text(path: Path) -> str | None:
    """A file's text; None when there is no such file.

    Raises:
        UnknownModel: it cannot be read.
        MalformedModel: it is too long, or no text.

    """
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise MalformedModel(f"{path}: more than {MAX_TEXT_BYTES >> 20} MiB of text")
        return path.read_bytes().decode("utf-8")  # every byte counts for the fingerprint, line ends too
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise MalformedModel(f"{path} is no text in UTF-8") from error
    except OSError as error:
        raise UnknownModel(f"{path} cannot be read: {error.strerror}") from error


def _weight_files(folder: Path) -> list[Path]:
    index = _read_text(folder / INDEX)
    if index is None:
        return [folder / SINGLE]
    return [folder / name for name in read_shards(index, f"{folder.name}/{INDEX}")]


def _header(file: MappedFile) -> Mapping[str, StoredTensor]:
    size, label = len(file.data), file.path.name
    length = header_bytes(file.data[:LENGTH_BYTES].tobytes(), size, label)
    return read_header(file.data[:length].tobytes(), size, label)
