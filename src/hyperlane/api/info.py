"""GET /v1/models and /v1/models/{id}: the one model that is served. GET /, /health, /ready, /status, /metrics."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from hyperlane import __version__
from hyperlane.api.chunks import JsonObject
from hyperlane.api.edge import Edge
from hyperlane.observe.exposition import CONTENT_TYPE, KeyUse, exposition
from hyperlane.plain import plain


def list_models(edge: Edge) -> JsonObject:
    """The list of models, which has one entry."""
    return {"object": "list", "data": [_model(edge)]}


def retrieve_model(edge: Edge, name: str) -> JsonObject:
    """One model, under any of its names.

    Raises:
        UnknownModel: no such name.

    """
    edge.check_model(name)
    return _model(edge)


def _model(edge: Edge) -> JsonObject:
    return {
        "id": edge.model,
        "object": "model",
        "created": edge.created,
        "owned_by": "hyperlane",
        "context_length": edge.generator.context,
    }


def describe_server(edge: Edge) -> JsonObject:
    """What answers here, for a person who opens the address in a browser."""
    return {
        "name": "hyperlane",
        "version": __version__,
        "model": edge.model,
        "base_url": "/v1",
        "description": "/openapi.json",
    }


def report_readiness(edge: Edge) -> Response:
    """200 when a real token went through every stage, else 503 with the reason."""
    if edge.generator.ready():
        return JSONResponse({"status": "ready"})
    reason = "No token has gone through every stage of the running plan since it was loaded or a link of it failed."
    return JSONResponse({"status": "not ready", "reason": reason}, 503, {"retry-after": "5"})


def report_metrics(edge: Edge) -> Response:
    """What was counted, for Prometheus."""
    keys = [
        KeyUse(one.name, one.running, one.requests, one.tokens, tuple((str(k), n) for k, n in one.refused.items()))
        for one in edge.keys.accounts.values()
    ]
    return Response(exposition(edge.generator.status(), keys), media_type=CONTENT_TYPE)


def report_status(edge: Edge) -> Response:
    """The head's `HeadStatus` by field name: plan, stages' times, bytes on the links, counters."""
    return JSONResponse(plain(edge.generator.status()))
