"""Measuring an OpenAI-compatible endpoint: our own server, and servers that are something else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from hyperlane.api import HttpServer, bind_socket, create_app
from hyperlane.bench.endpoint import Endpoint
from hyperlane.bench.suite import Suite, measure
from hyperlane.bench.workload import Workload
from hyperlane.config import ApiConfig
from hyperlane.errors import ClusterError, UsageError
from hyperlane.head.head import Head
from hyperlane.head.service import HeadService
from hyperlane.testing.byte_tokenizer import ByteTokenizer
from hyperlane.testing.engine_ring import engine_ring
from hyperlane.testing.fake_engine import FakeEngine
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs


class Turns:
    """A chat template of bytes."""

    def encode(self, messages):
        return tuple("".join(message.content for message in messages).encode())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    facts = toy_facts(context=4096)
    plan = toy_plan(facts, slots=4)
    specs = toy_specs(plan)
    head = Head(facts, ByteTokenizer())
    with engine_ring(specs, [FakeEngine(spec) for spec in specs]) as ring:
        service = HeadService(head, ByteTokenizer(), Turns())
        head.switch(ring, plan, 1)
        config = ApiConfig(key=("secret",))
        server = HttpServer(create_app(service, config), bind_socket("127.0.0.1", 0), config)
        server.start()
        yield server.url
        server.stop()
        head.close()


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """A server that says the same to everybody."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_tokens_and_times_are_what_the_server_did(url):
    endpoint = Endpoint(url, key="secret")
    assert endpoint.model == "toy"
    sample = endpoint.run(Workload(50, 40, 3))
    assert sample.prompt_tokens > 200
    assert 0 < sample.ttft_s < 60
    assert sample.decode_rate > 0


def test_a_suite_runs_against_it(url):
    figures = measure(Endpoint(f"{url}/v1/", "toy", "secret").run, Suite((20, 60), 20, (1, 2), 2))
    assert figures.prompts[0].tokens < figures.prompts[1].tokens
    assert all(one.rate > 0 for one in figures.decodes)


def test_the_wrong_key_and_no_http_address_are_the_users_to_mend(url):
    with pytest.raises(UsageError, match="--api-key"):
        Endpoint(url, key="wrong")
    with pytest.raises(UsageError, match="no HTTP address"):
        Endpoint("127.0.0.1:8000")


def test_an_unknown_model_is_said_in_the_servers_words(url):
    with pytest.raises(ClusterError, match="404"):
        Endpoint(url, "nobody", "secret").run(Workload(5, 5))


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, "<html>", "lists no model"),
        (200, '{"data": []}', "lists no model"),
        (500, "broken", "answers 500"),
    ],
)
def test_what_is_no_such_server_is_named(status, body, says):
    with answering(status, body) as url, pytest.raises(ClusterError, match=says):
        Endpoint(url)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("data: {]\n\n", "not as OpenAI's API does"),
        ('data: {"choices": [{}]}\n\n', "not as OpenAI's API does"),
        ('data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        ("data: [DONE]\n\n", "held no token"),
    ],
)
def test_a_stream_that_is_none_is_an_error(body, says):
    with answering(200, body) as url, pytest.raises(ClusterError, match=says):
        Endpoint(url, "m").run(Workload(5, 5))


def test_nothing_there_is_said():
    with pytest.raises(ClusterError, match="is a server running there"):
        Endpoint("http://127.0.0.1:1")
