"""Who may ask: keys, and for a server on loopback the names it answers to. Plain ASGI, around every route."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from hyperlane.api.errors import Problem
from hyperlane.api.keys import KeyRing
from hyperlane.api.limits import Account

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
"""Paths that need no key: they say nothing but that the server is there."""

_ACCOUNT = "hyperlane.account"

_PRIVATE_NAMES = ("localhost", ".localhost", ".internal")
"""Names that no public name server resolves; `.internal` is how a container calls its host."""


class KeyGuard:
    """Asks for one of the keys as a bearer token, on all but the open paths; its account goes with the request."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await problem.response()(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        if scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS":
            return None
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and (account := self._keys.find(token.strip())) is not None:
            scope[_ACCOUNT] = account
            return None
        message = "The API key is missing: send it as 'Authorization: Bearer KEY'."
        if token:
            message = "The API key is wrong."
        headers = (("www-authenticate", "Bearer"),)
        return Problem(401, message, "authentication_error", code="invalid_api_key", headers=headers)


def account_of(scope: Scope) -> Account | None:
    """Whose key a request showed; None where none is asked for."""
    return scope.get(_ACCOUNT)


class HostGuard:
    """Refuses foreign names in the Host header of a server on loopback without a key.

    A web page of `evil.example` whose name is made to resolve to 127.0.0.1 (DNS rebinding) counts as the same origin
    for the browser; its Host header gives it away. Addresses and private names cannot be rebound.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = host_name(Headers(scope=scope).get("host", "")) if scope["type"] == "http" else "localhost"
        if host in self._hosts or not host or is_private_name(host):
            await self._app(scope, receive, send)
            return
        message = (
            f"This server listens on loopback and does not answer to the name '{host}'; "
            "allow it in the setting 'hosts' of [api], or set an API key."
        )
        problem = Problem(403, message, "permission_error", code="host_not_allowed")
        await problem.response()(scope, receive, send)


def host_name(header: str) -> str:
    """The name in a Host header, without its port and brackets, in lower case."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")


def is_private_name(host: str) -> bool:
    """Whether a name is an address, or one that only this machine's own resolver knows."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == _PRIVATE_NAMES[0] or host.endswith(_PRIVATE_NAMES[1:])
    return True


def is_loopback(host: str) -> bool:
    """Whether a listening address reaches this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
