"""Which files of a hub repository are the model that was asked for. Pure: a listing in, a choice out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hyperlane.errors import UnknownModel, UnsupportedModel
from hyperlane.models.checkpoint_header import TEXTS
from hyperlane.models.checkpoint_table import INDEX

CHECKPOINT_FILES = frozenset({*TEXTS, INDEX})
"""What a checkpoint's folder holds besides its weights, as far as Hyperlane reads it."""

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_QUANTISATION = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q\d[A-Z0-9]*(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|F16|F32|FP16|FP32))"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_NO_MODEL = ("mmproj", "imatrix")
"""GGUF files that are no language model: projectors of images, and statistics for quantising."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository at one commit.

    `sha256`: hex, of its content; empty for small files kept in git, which have `git`, its SHA-1 of them.
    """

    path: str
    nbytes: int
    sha256: str = ""
    git: str = ""

    @property
    def name(self) -> str:
        """Without its folder."""
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Choice:
    """The files of one model: a single GGUF file, or those of a checkpoint."""

    files: tuple[HubFile, ...]
    is_checkpoint: bool = False

    @property
    def nbytes(self) -> int:
        """Of all its files."""
        return sum(file.nbytes for file in self.files)


def choose(files: Sequence[HubFile], pick: str, where: str) -> Choice:
    """The model in a listing: the file of that path or name, or of that quantisation, or the only one.

    `where`: what the repository is called in messages.

    Raises:
        UnknownModel: there is none, or several; the message lists what is there.
        UnsupportedModel: it is there in parts.

    """
    models = [file for file in files if _is_model(file)]
    if pick:
        chosen = [file for file in models if pick.lower() in {file.path.lower(), file.name.lower()}]
        chosen = chosen or [file for file in models if _is_of(file, pick)]
        if not chosen and _names_checkpoint(files, pick):
            return _checkpoint(files)
        if not chosen:
            raise UnknownModel(f"{where} has no '{pick}'. {_what_is_there(models, files)}")
    else:
        chosen = models
    if not chosen and _is_checkpoint(files):
        return _checkpoint(files)
    if not chosen:
        raise UnknownModel(f"{where} holds neither a GGUF file nor a checkpoint (config.json and *.safetensors)")
    return Choice((_only(chosen, pick, where),))


def quantisation(path: str) -> str:
    """The quantisation that a file's name (else its folder's) tells, in capitals; empty when it tells none."""
    for part in reversed(path.split("/")):
        found = _QUANTISATION.findall(part)
        if found:
            return str(found[-1]).upper()
    return ""


def _is_model(file: HubFile) -> bool:
    return file.name.lower().endswith(".gguf") and not any(mark in file.name.lower() for mark in _NO_MODEL)


def _is_of(file: HubFile, pick: str) -> bool:
    own = quantisation(file.path)
    return pick.upper() in {own, own.removeprefix("UD-")} if own else False


def _only(chosen: Sequence[HubFile], pick: str, where: str) -> HubFile:
    whole = [file for file in chosen if not _PART.search(file.name)]
    exact = [file for file in whole if pick and quantisation(file.path) == pick.upper()]
    if len(exact) == 1:
        return exact[0]
    if len(whole) == 1:
        return whole[0]
    if whole:
        raise UnknownModel(f"{where} holds several models{f' for {pick!r}' if pick else ''}. {_list(whole)}")
    raise UnsupportedModel(
        f"{where}: {chosen[0].path} is one of several parts of a GGUF file; Hyperlane reads whole files only. Choose "
        "another quantisation, or download the parts, join them with llama.cpp's 'llama-gguf-split --merge', and give "
        "the file"
    )


def _is_checkpoint(files: Iterable[HubFile]) -> bool:
    paths = {file.path for file in files}
    return "config.json" in paths and any(_SHARD.fullmatch(path) for path in paths)


def _names_checkpoint(files: Sequence[HubFile], pick: str) -> bool:
    named = pick.lower() == "safetensors" or (_SHARD.fullmatch(pick) and any(file.path == pick for file in files))
    return bool(named) and _is_checkpoint(files)


def _checkpoint(files: Iterable[HubFile]) -> Choice:
    wanted = (file for file in files if file.path in CHECKPOINT_FILES or _SHARD.fullmatch(file.path))
    return Choice(tuple(sorted(wanted, key=lambda file: file.path)), is_checkpoint=True)


def _what_is_there(models: Sequence[HubFile], files: Sequence[HubFile]) -> str:
    if not models and not _is_checkpoint(files):
        return "It holds no GGUF file at all"
    return _list(models) + (" Or :safetensors, its checkpoint." if _is_checkpoint(files) else "")


def _list(files: Sequence[HubFile]) -> str:
    """The names to write behind the repository's, with sizes, parts of one file counted together."""
    sizes: dict[str, int] = {}
    for file in files:
        name = _PART.sub(" (in parts)", file.path)
        sizes[name] = sizes.get(name, 0) + file.nbytes
    tags = [quantisation(name) for name in sizes]
    unique = len(set(tags)) == len(tags) and all(tags)
    shown = tags if unique else list(sizes)
    lines = [f":{name} ({size / 1e9:.1f} GB)" for name, size in zip(shown, sizes.values(), strict=True)]
    return "Write one of these behind its name: " + ", ".join(lines) + "."
