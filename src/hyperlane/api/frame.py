"""What every HTTP request gets, whatever its path: an id, HEAD as GET without a body, an answer to our bugs."""

from __future__ import annotations

import secrets

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hyperlane.api.errors import problem_of


class RequestFrame:
    """Plain ASGI around the routes and the key, inside CORS, so that browsers may read errors as well."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = b"req_" + secrets.token_hex(12).encode()
        started = False

        async def tagged(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        if scope["method"] == "HEAD":  # the server sends no body for it, as it keeps its own scope
            scope = {**scope, "method": "GET"}
        try:
            await self._app(scope, receive, tagged)
        except ClientDisconnect:
            return
        except Exception as error:  # the supervisor of all requests: one that fails must not fail in silence
            if started:
                raise
            await problem_of(error).response()(scope, receive, tagged)
