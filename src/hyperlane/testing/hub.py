"""A model hub on this machine, for tests: what the hub's own library asks of it, byte ranges, and failures on demand.

Speaks as huggingface.co does: large files lie on a storage of another address, to which requests are redirected with
a signature that does not carry the token. Keeps a record of what was asked.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = 1 << 10
"""Files from so many bytes on lie on the storage, with a SHA-256; smaller ones are git's."""

_CHUNK = 1 << 16


@dataclass(slots=True)
class Asked:
    """A request. `sent`: bytes of content in the answer so far. `authorised`: whether it bore a token itself.

    `token`: whose it was; on the storage, that of whom the address was made for.
    """

    method: str
    path: str
    token: str = ""
    range: tuple[int, int] | None = None
    sent: int = 0
    status: int = 200
    authorised: bool = False


@dataclass(slots=True)
class Repository:
    """A repository at one commit. `files`: content by path."""

    files: dict[str, bytes]
    commit: str = "c" * 40
    licence: str = "apache-2.0"
    token: str = ""
    gated: bool = False


Fault = Callable[[str, str], int | None]
"""Told the method and path of a request; a status instead of an answer, a negative number to send that many bytes of
the answer and then break the connection, or None."""


@dataclass(slots=True)
class HubStandIn:
    """The hub. `repositories` by OWNER/NAME may be changed at any time, as `fault`. Use `with`."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    fault: Fault | None = None
    ranges: bool = True
    asked: list[Asked] = field(default_factory=list)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _servers: list[ThreadingHTTPServer] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for _ in range(2):
            server = _Server(("127.0.0.1", 0), self._handler())
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="hub", daemon=True)
            thread.start()
            self._servers.append(server)
            self._threads.append(thread)
        return self

    def __exit__(self, *_error: object) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    @property
    def url(self) -> str:
        """Its address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def storage(self) -> str:
        """The address where large files lie."""
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def add(self, name: str, files: dict[str, bytes], **more: object) -> Repository:
        """Put a repository there; `more`: the other fields of `Repository`."""
        repository = self.repositories[name] = Repository(files, **more)  # type: ignore[arg-type]
        return repository

    def bytes_sent(self, ending: str = "", token: str = "") -> int:
        """Bytes of file content that were sent, of files whose path ends so, to whoever has that token."""
        with self._guard:
            return sum(
                one.sent
                for one in self.asked
                if one.method == "GET" and one.path.endswith(ending) and (not token or one.token == token)
            )

    def note(self, asked: Asked) -> None:
        """Keep a request in the record."""
        with self._guard:
            self.asked.append(asked)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(_Handler):
            hub = stand_in

        return Handler


class _Server(ThreadingHTTPServer):
    """Says nothing of those who go away in the middle."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        fault = self.hub.fault(self.command, path) if self.hub.fault else None
        if fault is not None and fault > 0:
            self._refuse(fault, path=path)
        elif path.startswith("/api/models/"):
            self._tell(path.removeprefix("/api/models/"))
        elif path.startswith("/storage/"):
            self._give_stored(path, parse_qs(parts.query), fault)
        else:
            self._resolve(path, fault)

    # --- the hub -------------------------------------------------------------------------------------------------

    def _tell(self, path: str) -> None:
        name, _, revision = path.partition("/revision/")
        with self._repository(name, revision or "main", path, needs_access=False) as repository:
            if repository is None:
                return
            siblings = [_sibling(path, content) for path, content in repository.files.items()]
            tags = ["gguf", f"license:{repository.licence}"]
            told = {"id": name, "sha": repository.commit, "siblings": siblings, "tags": tags}
            self._send(json.dumps(told).encode(), {"Content-Type": "application/json"}, path)

    def _resolve(self, path: str, fault: int | None) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match is None:
            self._refuse(404, path=path)
            return
        name, revision, file = match.groups()
        with self._repository(name, revision, path) as repository:
            if repository is None:
                return
            content = repository.files.get(file)
            if content is None:
                self._refuse(404, "EntryNotFound", path=path)
                return
            headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{_git(content)}"'}
            if len(content) < LARGE:
                self._send(content, headers, path, fault)
                return
            digest = hashlib.sha256(content).hexdigest()
            target = f"{self.hub.storage}/storage/{name}/{quote(file)}?signed-for={quote(self._token())}"
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"', "Location": target}
            self.hub.note(Asked(self.command, path, self._token(), status=302, authorised=bool(self._token())))
            self._head(302, headers | {"Content-Length": "0"})

    @contextmanager
    def _repository(
        self, name: str, revision: str, path: str, *, needs_access: bool = True
    ) -> Iterator[Repository | None]:
        """The repository at a revision, or None after a refusal was sent."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.token and not repository.gated and self._token() != repository.token):
            self._refuse(401, "RepoNotFound", path=path)
        elif revision not in {"main", repository.commit}:
            self._refuse(404, "RevisionNotFound", path=path)
        elif repository.gated and needs_access and self._token() != repository.token:
            self._refuse(401 if not self._token() else 403, "GatedRepo", path=path)
        else:
            yield repository
            return
        yield None

    # --- the storage ---------------------------------------------------------------------------------------------

    def _give_stored(self, path: str, query: dict[str, list[str]], fault: int | None) -> None:
        name, file = re.fullmatch(r"/storage/([^/]+/[^/]+)/(.+)", path).groups()  # type: ignore[union-attr]
        content = self.hub.repositories[name].files[file]
        token = query.get("signed-for", [""])[0]
        headers = {"ETag": f'"stored-{_git(content)}"', "Accept-Ranges": "bytes"}
        self._send(content, headers, path, fault, token=token)

    def _send(
        self, content: bytes, headers: dict[str, str], path: str, fault: int | None = None, token: str = ""
    ) -> None:
        wanted = self._range(len(content))
        begin, end = wanted or (0, len(content))
        if wanted is not None:
            headers = headers | {"Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"}
        asked = Asked(self.command, path, token or self._token(), wanted, authorised="authorization" in self.headers)
        self.hub.note(asked)
        self._head(200 if wanted is None else 206, headers | {"Content-Length": str(end - begin)})
        limit = end - begin if fault is None else min(-fault, end - begin)
        while self.command == "GET" and asked.sent < limit:
            at = begin + asked.sent
            asked.sent = min(asked.sent + _CHUNK, limit)  # before it is written: whoever gets it may look at once
            try:
                self.wfile.write(content[at : begin + asked.sent])
            except OSError:
                return  # whoever asked has gone away
        if limit < end - begin:
            self.close_connection = True

    def _range(self, size: int) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if match is None or not self.hub.ranges:
            return None
        return int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)

    def _refuse(self, status: int, code: str = "", *, path: str) -> None:
        headers = {"Content-Length": "0"} | ({"X-Error-Code": code} if code else {})
        if status == 429:
            headers["Retry-After"] = "0"
        self.hub.note(Asked(self.command, path, self._token(), status=status))
        self._head(status, headers)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")


def _sibling(path: str, content: bytes) -> dict[str, object]:
    sibling: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": _git(content)}
    if len(content) >= LARGE:
        digest = hashlib.sha256(content).hexdigest()
        sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
    return sibling


def _git(content: bytes) -> str:
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
