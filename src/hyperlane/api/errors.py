"""Every failure as the OpenAI API says it: {"error": {"message", "type", "param", "code"}} with an HTTP status.

The one place that knows which error of `hyperlane.errors` becomes which status. Knows no route.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, replace

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from hyperlane.api.limits import KeyExhausted, Limit
from hyperlane.errors import (
    ClusterError,
    DeadlineExceeded,
    EngineFault,
    HyperlaneError,
    InvalidRequest,
    LinkError,
    Overloaded,
    PipelineLost,
    UnknownModel,
)

log = logging.getLogger(__name__)

INVALID = "invalid_request_error"
SERVER = "server_error"


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told of a failure. `kind` is the body's `type`; `headers` go with the response."""

    status: int
    message: str
    kind: str = INVALID
    param: str | None = None
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def body(self) -> bytes:
        """The JSON object of a response's body, and of an error event in a stream."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def response(self) -> Response:
        """The whole HTTP response."""
        return Response(self.body(), self.status, dict(self.headers), "application/json")


class HttpProblem(HyperlaneError):
    """A failure that only the HTTP edge has: a wrong path, key, content type or size of body."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class ShuttingDown(HyperlaneError):
    """The server stops; the answer was cut off."""


class Cancelled(HyperlaneError):
    """The request was cancelled on the server's side, not by its client."""


_SERVER_SIDE: tuple[tuple[type[HyperlaneError], int, str], ...] = (
    (PipelineLost, 503, "no_pipeline"),
    (ClusterError, 503, "no_pipeline"),
    (LinkError, 503, "no_pipeline"),
    (ShuttingDown, 503, "shutting_down"),
    (Cancelled, 503, "cancelled"),
    (EngineFault, 500, "engine_fault"),
    (DeadlineExceeded, 504, "deadline_exceeded"),
)


_NEVER_AGAIN = (("x-should-retry", "false"),)
"""Official clients would ask twice more, to no other end."""

_HEADERS = {503: (("retry-after", "5"),), 504: _NEVER_AGAIN}


def problem_of(error: BaseException) -> Problem:
    """Say an error in the API's words. One that is not ours is a bug: it is logged, and the client told no detail."""
    match error:
        case HttpProblem():
            return error.problem
        case InvalidRequest():
            return Problem(400, str(error), INVALID, error.param, error.code)
        case UnknownModel():
            return Problem(404, str(error), param="model", code="model_not_found")
        case Overloaded():
            return _too_much(error)
    for kind, status, code in _SERVER_SIDE:
        if isinstance(error, kind):
            return Problem(status, str(error), SERVER, code=code, headers=_HEADERS.get(status, ()))
    log.error("a request failed unexpectedly", exc_info=error)
    return Problem(500, "The server failed in a way it should not; its log says more.", SERVER, code="internal_error")


def _too_much(error: Overloaded) -> Problem:
    seconds = (("retry-after", str(max(1, math.ceil(error.retry_after_s)))),)
    if not isinstance(error, KeyExhausted):
        return Problem(429, str(error), "rate_limit_error", code="queue_full", headers=seconds)
    kind = "tokens" if error.limit is Limit.TOKENS else "requests"
    headers = seconds if error.retry_after_s else _NEVER_AGAIN
    return Problem(429, str(error), kind, code="rate_limit_exceeded", headers=headers)


def with_param(error: InvalidRequest, renamed: dict[str, str]) -> InvalidRequest:
    """The same error with `param` as this endpoint calls it."""
    if error.param in renamed:
        error.param = renamed[error.param]
    return error


async def answer_error(_: Request, error: Exception) -> Response:
    """Exception handler of the application for every error of ours."""
    return problem_of(error).response()


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Exception handler for what the router raises: no such path, or not with this method."""
    if not isinstance(error, HTTPException):
        raise error
    headers = tuple((error.headers or {}).items())
    place = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        return _wrong_method(place, request.method, headers)
    if error.status_code == 404:
        message = f"{place}: there is no such endpoint; /openapi.json lists all of them."
        return Problem(404, message, code="unknown_url").response()
    return replace(Problem(error.status_code, str(error.detail)), headers=headers).response()


def _wrong_method(place: str, method: str, headers: tuple[tuple[str, str], ...]) -> Response:
    allowed = ", ".join(value for name, value in headers if name.lower() == "allow")
    if "GET" in allowed:
        allowed += ", HEAD"
    allowed += ", OPTIONS"
    if method == "OPTIONS":
        return Response(status_code=204, headers={"allow": allowed})
    message = f"{place}: this method is not allowed here; allowed: {allowed}."
    return Problem(405, message, code="method_not_allowed", headers=(("allow", allowed),)).response()
