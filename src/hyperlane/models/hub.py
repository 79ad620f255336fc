"""The Hugging Face hub through its own library: what a repository holds at a commit, and where its files lie.

Every failure of the library becomes one of ours at one place. Downloads nothing, knows no format and keeps no books.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from hyperlane.errors import HyperlaneError, TransferError, UnknownModel
from hyperlane.models.hub_choice import HubFile
from hyperlane.models.ranges import RemoteFile
from hyperlane.models.reference import HUB_HOSTS, HubReference

HOW_TO_LOG_IN = (
    "If it is yours or you were granted access, log in with `hf auth login`, or set HF_TOKEN to a token of yours, on "
    "every machine that reads from the hub"
)
ANSWER_S = 15.0
_TRIES = 4
_LONGEST_PAUSE_S = 15.0
MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What a server answers that may be otherwise a moment later."""


T = TypeVar("T")


class Unreachable(TransferError):
    """Nothing answers there, or it may not be asked: what is on this machine may still do."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at one commit. `licence`: as the repository names it, perhaps empty."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    licence: str = ""


def look_up(reference: HubReference) -> Listing:
    """Ask the hub for a repository's files, their sizes and hashes, and the commit that its revision is now.

    Raises:
        UnknownModel: there is no such repository or revision, or it is private.
        TransferError: access was not granted, or the hub refuses.
        Unreachable: it does not answer.

    """
    from huggingface_hub import HfApi

    def ask() -> Listing:
        api = HfApi(endpoint=endpoint())
        info = api.model_info(reference.repo, revision=reference.revision, timeout=ANSWER_S, files_metadata=True)
        files = (
            HubFile(
                path=sibling.rfilename,
                nbytes=sibling.size or 0,
                sha256=sibling.lfs.sha256 if sibling.lfs else "",
                git=sibling.blob_id or "",
            )
            for sibling in info.siblings or ()
        )
        licences = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
        return Listing(reference.repo, info.sha or reference.revision, tuple(files), ", ".join(licences))

    return _told(ask, str(reference))


def remote_file(listing: Listing, file: HubFile) -> RemoteFile:
    """What another machine needs to read a file at this very commit."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(listing.repo, file.path, revision=listing.commit, endpoint=endpoint())
    return RemoteFile(url, file.nbytes, digest=file.sha256)


def headers_for(url: str) -> dict[str, str]:
    """What to send with a request: this user's token, to the hub alone."""
    from huggingface_hub import get_token

    asked, own = urlsplit(url), urlsplit(endpoint())
    is_hub = (asked.scheme, asked.netloc) == (own.scheme, own.netloc)
    if not is_hub and not (asked.scheme == "https" and asked.netloc in HUB_HOSTS):
        return {}
    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or its usual one."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _told(ask: Callable[[], T], where: str) -> T:
    """An answer of the hub; what may pass is tried again, what not becomes an error of ours."""
    tries = 0
    while True:
        tries += 1
        try:
            return ask()
        except Exception as error:  # the library raises its HTTP client's own types, which change with its versions
            pause_s = _pause_before_next(error, tries)
            if pause_s is None:
                raise _ours(error, where) from error
            time.sleep(pause_s)


def _pause_before_next(error: Exception, tries: int) -> float | None:
    """Seconds until the hub is asked again; None: not again."""
    response = getattr(error, "response", None)
    if response is None or response.status_code not in MAY_PASS or tries >= _TRIES:
        return None
    said: str = response.headers.get("retry-after", "")
    return min(float(said) if said.isdecimal() else 0.5 * 2**tries, _LONGEST_PAUSE_S)


def _ours(error: Exception, where: str) -> HyperlaneError:
    """The library's error as one of ours: by what the hub said of it, else by its status."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        page = f"{endpoint()}/{'/'.join(where.removeprefix('hf.co/').split('/')[:2])}"
        return TransferError(f"{where} is gated: ask for access on its page, {page}. {HOW_TO_LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return UnknownModel(f"{where}: the hub knows no such branch, tag or commit")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UnknownModel(f"the hub has no model repository {where}, or it is private. {HOW_TO_LOG_IN}")
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = str(error).strip().splitlines() or [type(error).__name__]
    if status is None:
        return Unreachable(f"the hub at {endpoint()} cannot be reached for {where}: {said[0]}")
    hint = {
        401: HOW_TO_LOG_IN,
        403: HOW_TO_LOG_IN,
        429: f"It wants fewer requests from here: wait a little. {HOW_TO_LOG_IN}",
    }
    return TransferError(f"the hub did not give {where} ({status}): {hint.get(status, said[0])}")
