"""The OpenAPI document: every request and every answer of the routes, errors included. Knows no route's code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from hyperlane.api.body import TIMEOUT_HEADER
from hyperlane.api.schema import ChatRequest, CompletionRequest

Schema = Mapping[str, Any]
"""A JSON schema, or a part of the document."""

_COMPONENT = "#/components/schemas/{model}"
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def _object(required: Schema, **optional: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _one_of(name: str) -> Schema:
    return {"$ref": _COMPONENT.format(model=name)}


_EVENT = _object({"data": _TEXT})

_CHOICE: Schema = {
    "index": _COUNT,
    "finish_reason": {"type": "string", "enum": ["stop", "length"]},
    "logprobs": _or_null({"type": "object"}),
}
_ANSWER: Schema = {
    "id": _TEXT,
    "created": _COUNT,
    "model": _TEXT,
    "system_fingerprint": _TEXT,
    "usage": _one_of("Usage"),
}
_MESSAGE = _object({"role": {"const": "assistant"}, "content": _TEXT, "refusal": {"type": "null"}})
_SCHEMAS: Schema = {
    "Error": _object(
        {
            "error": _object(
                {"message": _TEXT, "type": _TEXT, "param": _or_null(_TEXT), "code": _or_null(_TEXT)},
            )
        }
    ),
    "Usage": _object(
        {
            "prompt_tokens": _COUNT,
            "completion_tokens": _COUNT,
            "total_tokens": _COUNT,
            "prompt_tokens_details": _object({"cached_tokens": _COUNT}),
        },
        paused_s={"type": "number", "description": "seconds that the answer stood still because workers were lost"},
    ),
    "ChatCompletion": _object(
        {
            **_ANSWER,
            "object": {"const": "chat.completion"},
            "choices": _list(_object({**_CHOICE, "message": _MESSAGE})),
        }
    ),
    "Completion": _object(
        {**_ANSWER, "object": {"const": "text_completion"}, "choices": _list(_object({**_CHOICE, "text": _TEXT}))}
    ),
    "Model": _object(
        {"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT, "context_length": _COUNT}
    ),
    "ModelList": _object({"object": {"const": "list"}, "data": _list(_one_of("Model"))}),
}
_ERRORS: Mapping[int, str] = {
    400: "the request is wrong; `param` names the field",
    401: "the API key is missing or wrong",
    403: "this server does not answer to that name",
    404: "the model is not served here",
    413: "the body is too long",
    415: "the body is not declared as JSON",
    429: "the queue is full, or the key has used what it may; see Retry-After",
    500: "a stage failed, or a bug",
    503: "no pipeline, or the server stops",
    504: "the answer was not complete in time",
}


def generates(body: str, answer: str) -> dict[str, Any]:
    """What a generating route adds to its description: its body, and its answers, whole or streamed."""
    good = {
        "description": "The whole answer; with `stream`, its pieces as server-sent events.",
        "content": {"application/json": {"schema": _one_of(answer)}, "text/event-stream": {"schema": _EVENT}},
    }
    header = {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "schema": {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$"},
    }
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _one_of(body)}}},
        "parameters": [{**header, "description": "seconds until the answer must be complete"}],
        "responses": {"200": good, **_errors(*_ERRORS)},
    }


def answers(name: str | None = None, *errors: int, media: str = "application/json") -> dict[str, Any]:
    """What another route adds: the schema of its answer, if it has a name, and the errors beside 401 and 403."""
    schema = _one_of(name) if name else {"type": "object"} if media == "application/json" else _TEXT
    good = {"description": "OK", "content": {media: {"schema": schema}}}
    return {"responses": {"200": good, **_errors(401, 403, 500, *errors)}}


def _errors(*codes: int) -> Schema:
    content = {"application/json": {"schema": _one_of("Error")}}
    return {str(code): {"description": _ERRORS[code], "content": content} for code in codes}


def describe(app: FastAPI, models: Sequence[str]) -> dict[str, Any]:
    """The whole document. `models`: names that requests may give the model."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    kinds = [(ChatRequest, "validation"), (CompletionRequest, "validation")]
    _, bodies = models_json_schema(kinds, ref_template=_COMPONENT)  # type: ignore[arg-type]
    schemas = {**bodies["$defs"], **_SCHEMAS}
    for name in (ChatRequest.__name__, CompletionRequest.__name__):
        schemas[name]["properties"]["model"]["examples"] = list(models)
    document["components"] = {"schemas": schemas}
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own, which no route has
    return document
