"""`create_app`: the routes, and around them keys, hosts and CORS. The composition of this package."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hyperlane import __version__
from hyperlane.api.auth import HostGuard, KeyGuard, is_loopback
from hyperlane.api.chat import create_chat_completion
from hyperlane.api.completions import create_completion
from hyperlane.api.edge import Edge
from hyperlane.api.errors import answer_error, answer_http_exception
from hyperlane.api.frame import RequestFrame
from hyperlane.api.info import (
    describe_server,
    list_models,
    report_metrics,
    report_readiness,
    report_status,
    retrieve_model,
)
from hyperlane.api.openapi import answers, describe, generates
from hyperlane.config import ApiConfig
from hyperlane.core import TextGenerator
from hyperlane.errors import HyperlaneError

_LOCAL_ORIGIN = r"[a-z][a-z0-9+.-]*://(localhost|[a-z0-9-]+\.localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
_CORS_AGE_S = 24 * 3600


def create_app(generator: TextGenerator, config: ApiConfig, aliases: Sequence[str] = ()) -> FastAPI:
    """The HTTP application that serves one generator.

    `aliases`: names beside `generator.facts.name` that requests may use, for instance the model file's stem;
    `.gguf` at the end and case make no difference. `config.host` is where it will listen.
    """
    edge = Edge(generator, config, aliases)
    app = FastAPI(title="Hyperlane", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.edge = edge
    _add_routes(app, edge)
    app.add_exception_handler(HyperlaneError, answer_error)
    app.add_exception_handler(HTTPException, answer_http_exception)
    if config.asks_for_key:
        app.add_middleware(KeyGuard, keys=edge.keys)
    app.add_middleware(RequestFrame)
    _add_cors(app, config)
    if is_loopback(config.host) and not config.asks_for_key and "*" not in config.hosts:
        app.add_middleware(HostGuard, hosts=config.hosts)
    app.openapi = functools.cache(lambda: describe(app, [edge.model]))  # type: ignore[method-assign]
    return app


def _add_routes(app: FastAPI, edge: Edge) -> None:
    @app.post("/v1/chat/completions", openapi_extra=generates("ChatRequest", "ChatCompletion"), tags=["generate"])
    async def chat_completions(request: Request) -> Response:
        return await create_chat_completion(edge, request)

    @app.post("/v1/completions", openapi_extra=generates("CompletionRequest", "Completion"), tags=["generate"])
    async def completions(request: Request) -> Response:
        return await create_completion(edge, request)

    @app.get("/v1/models", openapi_extra=answers("ModelList"), tags=["models"])
    async def models() -> Response:
        return JSONResponse(list_models(edge))

    @app.get("/v1/models/{name:path}", openapi_extra=answers("Model", 404), tags=["models"])
    async def model(name: str) -> Response:
        return JSONResponse(retrieve_model(edge, name))

    @app.get("/health", openapi_extra=answers(), tags=["server"])
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/ready", openapi_extra=answers(None, 503), tags=["server"])
    async def ready() -> Response:
        return report_readiness(edge)

    @app.get("/status", openapi_extra=answers(None, 503), tags=["server"])
    async def status() -> Response:
        return report_status(edge)

    @app.get("/metrics", openapi_extra=answers(None, 503, media="text/plain"), tags=["server"])
    async def metrics() -> Response:
        return report_metrics(edge)

    @app.get("/", openapi_extra=answers(), tags=["server"])
    async def root() -> Response:
        return JSONResponse(describe_server(edge))


def _add_cors(app: FastAPI, config: ApiConfig) -> None:
    """Without a key only pages of this machine may call, unless the user says otherwise: a page could be anyone's."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=config.cors_origins or (("*",) if config.asks_for_key else ()),
        allow_origin_regex=None if config.cors_origins else _LOCAL_ORIGIN,
        allow_methods=("GET", "HEAD", "OPTIONS", "POST"),
        allow_headers=("*",),
        expose_headers=("x-request-id", "retry-after"),
        max_age=_CORS_AGE_S,
    )
