"""A request's body: read within its limit, parsed, checked, and refused with the name of the field that is wrong."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from email.message import Message as MimeMessage
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import Request

from hyperlane.api.errors import HttpProblem, Problem
from hyperlane.api.unsupported import refuse_unsupported
from hyperlane.errors import InvalidRequest

INLINE_BYTES = 64 << 10
"""Longer bodies are parsed in a thread, so that running streams do not wait for it."""

TIMEOUT_HEADER = "x-request-timeout"

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, model: type[Model], limit: int) -> Model:
    """The body as a checked model. `limit`: bytes that are read at most.

    Raises:
        HttpProblem: the body is too long (413) or not declared as JSON (415).
        InvalidRequest: the body is not a JSON object, or a field is wrong or not supported.

    """
    _check_content_type(request)
    body = await _read(request, limit)
    if len(body) <= INLINE_BYTES:
        return _checked(body, model)
    return await asyncio.to_thread(_checked, body, model)


def timeout_of(request: Request, asked_s: float | None, most_s: float | None) -> float | None:
    """Seconds that a request may take: the least of what its body, its header and the server say.

    Raises:
        InvalidRequest: the header is not a number of seconds.

    """
    said = request.headers.get(TIMEOUT_HEADER)
    if said is not None and not (_SECONDS.fullmatch(said) and float(said) > 0):
        message = f"The header '{TIMEOUT_HEADER}' must be a number of seconds above 0, for instance 30 or 2.5."
        raise InvalidRequest(message, param=TIMEOUT_HEADER, code="invalid_value")
    given = [value for value in (asked_s, float(said) if said else None, most_s) if value is not None]
    return min(given, default=None)


def _checked(body: bytes, model: type[Model]) -> Model:
    content = _parse(body)
    refuse_unsupported(content)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _wrong_field(error.errors(include_url=False)[0]) from None


def _check_content_type(request: Request) -> None:
    """A page of a foreign origin can send other types without asking first (CORS): so JSON must be declared."""
    header = MimeMessage()
    header["content-type"] = request.headers.get("content-type", "")
    declared = header.get_content_type()
    if declared != "application/json" and not declared.endswith("+json"):
        message = "Send the body as JSON, with the header 'Content-Type: application/json'."
        raise HttpProblem(Problem(415, message, code="unsupported_content_type"))
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HttpProblem(Problem(415, "Send the body without content encoding.", code="unsupported_content_encoding"))


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_long(limit)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise _too_long(limit)
    return bytes(body)


def _too_long(limit: int) -> HttpProblem:
    message = f"The request's body is longer than {limit} bytes, the limit of this server."
    return HttpProblem(Problem(413, message, code="request_too_large"))


def _parse(body: bytes) -> Mapping[str, object]:
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(content, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    return content


def _wrong_field(error: ErrorDetails) -> InvalidRequest:
    param = _path(error["loc"])
    kind = error["type"]
    if kind == "missing":
        return InvalidRequest(f"The field '{param}' is missing.", param=param, code="missing_required_parameter")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    words = error["msg"][:1].lower() + error["msg"][1:]
    return InvalidRequest(f"'{param}' is wrong: {words}.", param=param, code=code)


def _path(loc: tuple[int | str, ...]) -> str:
    """As in `messages[0].content`; pydantic's markers of a dictionary's keys are left out."""
    path = ""
    for step in loc:
        if step == "[key]":
            continue
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path
