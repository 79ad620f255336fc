"""A real server on a free port for each test, and the clients that talk to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import openai
import pytest

from hyperlane.api import HttpServer, bind_socket, create_app
from hyperlane.config import ApiConfig
from hyperlane.core import TextGenerator
from hyperlane.testing.fake_generator import FakeGenerator

Serve = Callable[..., HttpServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server for a generator; keywords are fields of `ApiConfig`."""
    with ExitStack() as stack:

        def start(generator: TextGenerator, aliases: tuple[str, ...] = (), **fields: object) -> HttpServer:
            config = ApiConfig(**{"port": 0, "drain_s": 0.05, **fields})
            listener = bind_socket("127.0.0.1", 0)
            server = HttpServer(create_app(generator, config, aliases), listener, config)
            server.start()
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator()


@pytest.fixture
def server(serve: Serve, generator: FakeGenerator) -> HttpServer:
    return serve(generator)


@pytest.fixture
def client(server: HttpServer, connect: Callable[[HttpServer], openai.OpenAI]) -> Iterator[openai.OpenAI]:
    with connect(server) as client:
        yield client


@pytest.fixture
def http(server: HttpServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


@pytest.fixture
def connect() -> Callable[[HttpServer], openai.OpenAI]:
    """The official client of a server; it does not try again."""
    return lambda server, key="unused": openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
