"""Tensors on disk as their model's file has them, by model and name: whole and verified, or on their way.

Any number of processes may share it. Knows no source and no engine; what goes when room is short is `cache`'s matter.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt

from hyperlane.errors import ProtocolError
from hyperlane.files import replace_file
from hyperlane.models.digests import DigestCache, FileState
from hyperlane.models.ranges import TensorPlace, start_digest
from hyperlane.store.partial import DIGEST, WHOLE, PartialTensor, beside, open_partial
from hyperlane.store.ready_store import ABOUT

log = logging.getLogger(__name__)

_FINGERPRINT = re.compile(r"[0-9a-f]{16,128}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 1 << 20


class TensorStore:
    """Tensors below `root`, in a folder for each model's fingerprint."""

    def __init__(self, root: Path) -> None:
        """Nothing is made before something is stored."""
        self.root = root
        self._checked = DigestCache(root / ".checked")

    def find(self, model: str, place: TensorPlace) -> Path | None:
        """The file of a whole tensor that is what it should be; another one is removed."""
        path = self.path(model, place.info.name)
        try:
            known = beside(path, DIGEST).read_text(encoding="ascii")
            sound = path.stat().st_size == place.info.nbytes and known == (place.digest or known)
            if sound and self._digest(path, place) == known:
                return path
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            log.warning("the cached tensor %s cannot be read: %s", path, error)
        log.warning("the cached tensor %s is not what it was and is fetched again", path)
        path.unlink(missing_ok=True)
        return None

    def partial(self, model: str, place: TensorPlace) -> PartialTensor | None:
        """A tensor to be written; None while another process writes it.

        Raises:
            OSError: the folder cannot be written.

        """
        path = self.path(model, place.info.name)
        return open_partial(path, place)

    def digests(self, model: str) -> Mapping[str, str]:
        """The whole tensors of a model by name, in no order, with the digest that each had when it came."""
        found = {}
        for path in self.folder(model).glob(f"*{WHOLE}"):
            with suppress(OSError, UnicodeDecodeError):  # it is being removed, or was damaged: then nobody is given it
                digest = beside(path, DIGEST).read_text(encoding="ascii")
                if _DIGEST.fullmatch(digest):
                    found[unquote(path.name.removesuffix(WHOLE))] = digest
        return found

    def use(self, model: str, name: str) -> None:
        """A model is used now; `name` is what people call it."""
        about = self.folder(model) / ABOUT
        about.parent.mkdir(parents=True, exist_ok=True)
        replace_file(about, json.dumps({"name": name}).encode())

    def folder(self, model: str) -> Path:
        """A model's folder.

        Raises:
            ProtocolError: that is no fingerprint.

        """
        if not _FINGERPRINT.fullmatch(model):
            raise ProtocolError(f"{model[:80]!r} is no model's fingerprint")
        return self.root / model

    def path(self, model: str, name: str) -> Path:
        """Where a tensor is once it is whole. Every name is a file of the model's folder, whatever it holds."""
        return self.folder(model) / (quote(name, safe="") + WHOLE)

    def _digest(self, path: Path, place: TensorPlace) -> str:
        """Of the file as it is now; read once, until it changes."""
        state = FileState.of(path, path.stat())
        known = self._checked.load(state).get("data")
        if known is None:
            digest = start_digest(place.info)
            with path.open("rb") as file:
                while block := file.read(_READ_BYTES):
                    digest.update(block)
            known = digest.hexdigest()
            self._checked.save(state, {"data": known})
        return known


def map_tensor(path: Path) -> npt.NDArray[np.uint8]:
    """A whole tensor's bytes, mapped; they stay valid when the file is removed (where the system lets it be)."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
