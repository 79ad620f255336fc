"""Where models lay that were only looked at: so that a cluster whose workers hold the layers starts without the hub."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

from hyperlane.models.kept_bytes import keep
from hyperlane.models.ranges import RemoteFile
from hyperlane.models.remote_model import RemoteModel
from hyperlane.models.whole_file import Wanted

log = logging.getLogger(__name__)


class Remembered:
    """One small JSON file for each reference, below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, reference: str, model: RemoteModel) -> None:
        """Remember what a reference means now.

        Raises:
            TransferError: the folder cannot be written.

        """
        keep(self._place(reference), json.dumps(asdict(model)).encode())

    def find(self, reference: str) -> RemoteModel | None:
        """What a reference meant when it was looked up last."""
        place = self._place(reference)
        try:
            said = json.loads(place.read_bytes())
            wanted = [Wanted(RemoteFile(**one["remote"]), one["git"]) for one in said["wanted"]]
            return RemoteModel(**said | {"wanted": tuple(wanted), "paths": tuple(said["paths"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be read: %s", place, error)
            return None

    def _place(self, reference: str) -> Path:
        return self._folder / f"{hashlib.sha256(reference.encode()).hexdigest()[:40]}.json"
