"""`ByteRanges` over HTTP: pieces of a file of the hub or of a web server, with redirects, tries and checks.

Knows no file format. Asks `hub` which servers may be told this user's token.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock
from typing import Self
from urllib.parse import urljoin, urlsplit

import httpx

from hyperlane.errors import TransferError
from hyperlane.models import hub
from hyperlane.models.ranges import RemoteFile

TRIES = 6
"""Failures in a row, without a byte between them, after which a range is given up."""

LOOKS = 3
"""As many for a first look, which a person waits for."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 20.0
"""Seconds between tries: after each failure twice as many, and a random part more."""
CONNECT_S, SILENCE_S = 10.0, 30.0
"""Seconds until a server that does not answer, or falls silent in the middle, counts as a failure."""

MAX_REDIRECTS = 5
_EXPIRED = frozenset({400, 401, 403, 404, 410})
"""What a storage says to an address whose signature has run out."""


class NoRanges(TransferError):
    """The server gives whole files only."""


class _TryAgain(Exception):
    """A failure that may pass. `after_s`: when the server wants to be asked again, if it said so."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


class HttpRanges:
    """One remote file, read in pieces over a few connections that are kept. Close it, or use `with`."""

    def __init__(self, file: RemoteFile) -> None:
        """Nothing is asked yet."""
        self._file = file
        self._closed = Event()
        self._guard = Lock()
        self._storage = ""
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
        self._client = httpx.Client(timeout=timeout, headers={"Accept-Encoding": "identity"}, follow_redirects=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """As `ByteRanges`."""
        return self._file.size

    @property
    def digest(self) -> str:
        """As `ByteRanges`."""
        return self._file.digest

    def read(self, offset: int, length: int) -> bytes:
        """As `ByteRanges`."""
        target = bytearray()
        for chunk in self.stream(offset, length):
            target += chunk
        return bytes(target)

    def stream(self, offset: int, length: int) -> Iterator[bytes]:
        """The bytes of a range as they come; what a broken connection had brought is not asked for again.

        Raises:
            TransferError: as `read`.

        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise TransferError(f"{self._name} has {self.size} bytes, none at {offset} to {offset + length}")
        end, failures = offset + length, 0
        while offset < end:
            before = offset
            try:
                for chunk in self._receive(offset, end):
                    offset += len(chunk)
                    yield chunk
                if offset == before:
                    raise _TryAgain("the answer was empty")
            except (_TryAgain, httpx.TransportError) as error:
                failures = 1 if offset > before else failures + 1
                self._pause(failures, error)

    def look(self) -> RemoteFile:
        """The file as its server describes it now. Raises as `look_at`."""
        failures = 0
        while True:
            try:
                with self._answer({"Range": "bytes=0-0"}) as response:
                    return _described(response, self._file.url)
            except (_TryAgain, httpx.TransportError) as error:
                failures += 1
                self._pause(failures, error, LOOKS)

    def close(self) -> None:
        """As `ByteRanges`."""
        self._closed.set()
        self._client.close()

    # --- one request ---------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self._file.url.rsplit("/", 1)[-1].split("?", 1)[0]

    def _pause(self, failures: int, error: Exception, tries: int = TRIES) -> None:
        with self._guard:
            self._storage = ""
        said = str(error) or type(error).__name__
        if failures >= tries:
            kind = hub.Unreachable if isinstance(error, httpx.TransportError) else TransferError
            raise kind(f"{self._file.url} could not be read, {tries} times in a row: {said}") from error
        asked = error.after_s if isinstance(error, _TryAgain) else None
        pause_s = asked if asked is not None else FIRST_PAUSE_S * 2 ** (failures - 1) * (1 + random.random())
        self._closed.wait(min(pause_s, LONGEST_PAUSE_S))

    def _receive(self, offset: int, end: int) -> Iterator[bytes]:
        """What one answer brings of a range; it may end early without an error."""
        wanted = {"Range": f"bytes={offset}-{end - 1}"}
        with self._answer(wanted) as response:
            self._check(response, offset, end)
            for chunk in response.iter_raw():
                if len(chunk) > end - offset:
                    raise TransferError(f"{self._file.url}: the server sent more than was asked for")
                offset += len(chunk)
                yield chunk

    @contextmanager
    def _answer(self, wanted: dict[str, str]) -> Iterator[httpx.Response]:
        """The answer of whoever holds the bytes: where a redirect led last time is asked first."""
        with self._guard:
            known = self._storage
        if known:
            with self._send(known, wanted) as response:
                if response.status_code not in _EXPIRED:
                    yield response
                    return
        url = self._file.url
        for _ in range(MAX_REDIRECTS):
            with self._send(url, wanted | hub.headers_for(url)) as response:
                if not response.has_redirect_location:
                    with self._guard:
                        self._storage = "" if url == self._file.url else url
                    yield response
                    return
                self._check_version(response)
                url = urljoin(url, response.headers["location"])
            if urlsplit(url).scheme not in {"http", "https"}:
                raise TransferError(f"{self._file.url} leads to {url}, which is no web address")
        raise TransferError(f"{self._file.url} redirects more than {MAX_REDIRECTS} times")

    @contextmanager
    def _send(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        if self._closed.is_set():
            raise TransferError(f"reading {self._name} was given up")
        try:
            with self._client.stream("GET", url, headers=headers) as response:
                yield response
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise TransferError(f"{url} is no address that can be read: {error}") from error

    def _check(self, response: httpx.Response, offset: int, end: int) -> None:
        """That the answer is the range that was asked for, of the file that was planned."""
        _refuse_failure(response, self._file.url)
        self._check_version(response)
        if response.status_code == 200 and (offset, end) == (0, self.size):
            return  # whole, and the whole was asked for
        if response.status_code != 206:
            raise NoRanges(
                f"{self._file.url}: the server does not give parts of files; "
                "download the file with `hyperlane pull`, which takes it whole"
            )
        said = response.headers.get("content-range", "")
        if not said.startswith(f"bytes {offset}-{end - 1}/"):
            raise _TryAgain(f"bytes {offset}-{end - 1} were asked for, '{said}' came")
        total = said.rpartition("/")[2]
        if total not in {"*", str(self.size)}:
            raise _changed(self._file, f"it has {total} bytes now, not {self.size}")

    def _check_version(self, response: httpx.Response) -> None:
        """The hub states its files' hash where it redirects; other servers their own tag where the bytes are."""
        file, linked = self._file, _bare(response.headers.get("x-linked-etag", ""))
        if linked and file.digest and linked != file.digest:
            raise _changed(file, "the hub states another hash")
        if file.etag and response.is_success and (now := version_of(response)) != file.etag:
            raise _changed(file, f"its tag is {now or 'gone'} now, not {file.etag}")


def open_ranges(file: RemoteFile) -> HttpRanges:
    """The bytes of a remote file. Nothing is asked before the first read."""
    return HttpRanges(file)


def look_at(url: str) -> RemoteFile:
    """What a web server says of a file: its size and its version, by asking for its first byte.

    Raises:
        TransferError: it refuses, or does not say how large the file is.
        Unreachable: it does not answer.

    """
    with HttpRanges(RemoteFile(url, size=0)) as ranges:
        return ranges.look()


def version_of(response: httpx.Response) -> str:
    """What a server calls this version of a file: its tag, else when it was changed; empty when it says neither."""
    return str(response.headers.get("etag") or response.headers.get("last-modified") or "")


def _described(response: httpx.Response, url: str) -> RemoteFile:
    _refuse_failure(response, url)
    said = response.headers.get("content-range", "").rpartition("/")[2]
    total = said if response.status_code == 206 else response.headers.get("content-length", "")
    if not total.isdecimal():
        raise TransferError(f"{url}: the server does not say how large the file is")
    return RemoteFile(url, int(total), etag=version_of(response))


def _refuse_failure(response: httpx.Response, url: str) -> None:
    status = response.status_code
    if status in hub.MAY_PASS:
        after = response.headers.get("retry-after", "")
        raise _TryAgain(f"the server answered {status}", float(after) if after.isdecimal() else None)
    if status in {401, 403}:
        raise TransferError(f"{url}: the server refuses it ({status}). {hub.HOW_TO_LOG_IN}")
    if status in {404, 410}:
        raise TransferError(f"{url}: it is not there any more ({status})")
    if status == 416:
        raise TransferError(f"{url} has become shorter than it was (416): plan again")
    if status >= 400:
        raise TransferError(f"{url}: the server answered {status}")


def _changed(file: RemoteFile, how: str) -> TransferError:
    return TransferError(f"{file.url} is not the file any more that was planned: {how}; start again")


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')
