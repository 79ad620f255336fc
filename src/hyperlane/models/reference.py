"""What a user may write for a model, read: a catalogue name, a hub repository, a URL, a file or a folder.

Pure: whether something exists on the disk is asked through an argument, and nothing of a network is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hyperlane.errors import UnknownModel
from hyperlane.models import catalogue
from hyperlane.models.catalogue import CatalogueEntry

MAIN = "main"
"""The revision that is meant when none is named."""

HUB_HOSTS = frozenset({"hf.co", "huggingface.co", "www.huggingface.co"})
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_REPOSITORY = re.compile(f"{_NAME}/{_NAME}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}")
MODEL_ENDINGS = (".gguf", ".safetensors")


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository of the Hugging Face hub. `revision`: a branch, tag or commit.

    `pick` says which of its models: a quantisation (`Q4_K_M`) or a file's path; empty when there is one only.
    """

    repo: str
    revision: str = MAIN
    pick: str = ""

    def __str__(self) -> str:
        revision = "" if self.revision == MAIN else f"@{self.revision}"
        return f"hf.co/{self.repo}{revision}" + (f":{self.pick}" if self.pick else "")


@dataclass(frozen=True, slots=True)
class UrlReference:
    """A GGUF file on a web server."""

    url: str

    @property
    def name(self) -> str:
        """The file's own name, the last part of its path."""
        return unquote(urlsplit(self.url).path).rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class LocalReference:
    """A file or folder of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Reference = CatalogueEntry | HubReference | UrlReference | LocalReference


def parse(text: str, exists: Callable[[Path], bool] = Path.exists) -> Reference:
    """What a text means. A catalogue name wins over a file, a file over a repository; `./name` is always a path.

    Raises:
        UnknownModel: it means nothing; the message says what would.

    """
    entry = catalogue.find(text)
    if entry is not None:
        return entry
    if text.lower().startswith(("http://", "https://")):
        return _url(text)
    host, _, rest = text.removeprefix("hf://").partition("/")
    if text.startswith("hf://") or host.lower() in HUB_HOSTS:
        return _hub(rest if host.lower() in HUB_HOSTS else text.removeprefix("hf://"), text)
    path = Path(text).expanduser()
    if exists(path):
        return LocalReference(path)
    if _is_repository(text):
        return _hub(text, text)
    if _looks_like_path(text):
        raise UnknownModel(f"there is no file or folder {path}; {HOW}")
    return catalogue.required(text)


HOW = (
    "give a name of `hyperlane models`, a GGUF file or a folder, a repository of the hub as "
    "hf.co/OWNER/REPO:QUANTISATION, or the URL of a GGUF file"
)
"""What a model may be, for messages."""


def _is_repository(text: str) -> bool:
    """OWNER/REPO with what may follow; a lone GGUF file in a folder is a path that is not there."""
    repo, _, pick = text.partition(":")
    repo, _, revision = repo.partition("@")
    is_file = repo.lower().endswith(MODEL_ENDINGS) and not pick and not revision
    return not is_file and _REPOSITORY.fullmatch(repo) is not None


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "~")) or "/" in text or "\\" in text or text.lower().endswith(MODEL_ENDINGS)


def _hub(text: str, asked: str) -> HubReference:
    """OWNER/REPO, then optionally @REVISION, then :QUANTISATION, :FILE or /FILE, or the path of a page of the hub."""
    head, _, pick = text.strip("/").partition(":")
    head, _, revision = head.partition("@")
    if revision and "/" in revision and not pick and revision.lower().endswith(MODEL_ENDINGS):
        revision, _, pick = revision.partition("/")
    parts = head.split("/")
    repo, rest = "/".join(parts[:2]), parts[2:]
    if len(rest) >= 2 and rest[0] in {"resolve", "blob", "tree"} and not revision:
        revision, rest = rest[1], rest[2:]
    if rest and pick:
        raise UnknownModel(f"'{asked}' names a file twice: '{'/'.join(rest)}' and '{pick}'")
    pick = pick or "/".join(rest)
    if not _REPOSITORY.fullmatch(repo) or (revision and not _REVISION.fullmatch(revision)) or ".." in pick.split("/"):
        raise UnknownModel(
            f"'{asked}' is no repository of the hub: write hf.co/OWNER/REPO, hf.co/OWNER/REPO:QUANTISATION "
            "or hf.co/OWNER/REPO@REVISION:FILE"
        )
    return HubReference(repo, revision or MAIN, pick)


def _url(text: str) -> HubReference | UrlReference:
    parts = urlsplit(text)
    if (parts.hostname or "") in HUB_HOSTS:
        return _hub(unquote(parts.path), text)
    if not parts.hostname or not unquote(parts.path).lower().endswith(".gguf"):
        raise UnknownModel(f"{text} is not the URL of a GGUF file: its path must end in .gguf")
    return UrlReference(text)
