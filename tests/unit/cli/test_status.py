from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from hyperlane.cli.status import fetch
from hyperlane.errors import ClusterError, UsageError


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("Authorization") == "Bearer good"
            self.send_response(200 if allowed and self.path == "/status" else 401 if not allowed else 404)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_status_is_fetched_with_the_key(server):
    assert fetch(f"{server}/status", "good") == b"{}"


def test_a_wrong_key_is_a_usage_error(server):
    with pytest.raises(UsageError, match="--api-key"):
        fetch(f"{server}/status", None)


def test_another_server_is_named(server):
    with pytest.raises(ClusterError, match="answers 404"):
        fetch(f"{server}/elsewhere", "good")


def test_nothing_there_is_named(server):
    with pytest.raises(ClusterError, match="nothing answers"):
        fetch("http://127.0.0.1:9/status", None)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "file:///etc/passwd", ""])
def test_what_is_no_http_address_is_refused(url):
    with pytest.raises(UsageError, match="no HTTP address"):
        fetch(url, None)
