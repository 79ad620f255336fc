"""The listening socket, signals, and a server as a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap

import httpx
import pytest

from hyperlane.api import bind_socket
from hyperlane.errors import ConfigError


def test_a_bound_socket_listens_at_once():
    with bind_socket("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        pass


def test_a_port_in_use_is_said_with_what_to_do():
    with bind_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} is in use.*--port"):
            bind_socket("127.0.0.1", port)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets an exclusive port rest first")
def test_a_port_can_be_taken_again_at_once():
    with bind_socket("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        client = socket.create_connection(address)
        accepted, _ = listener.accept()
        accepted.close()  # the server closes first, so its side waits in TIME_WAIT
        client.close()
    bind_socket(*address).close()


def test_an_address_of_another_machine_is_said():
    with pytest.raises(ConfigError, match=r"no address 192\.0\.2\.1"):
        bind_socket("192.0.2.1", 0)


@pytest.mark.parametrize("host", ["no such host", "x" * 70])
def test_a_name_that_does_not_exist_is_said(host):
    with pytest.raises(ConfigError, match="cannot be resolved"):
        bind_socket(host, 0)


def test_localhost_is_the_older_loopback_first():
    with bind_socket("localhost", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


PROGRAM = """
    import threading
    from hyperlane.api import HttpServer, bind_socket, create_app
    from hyperlane.config import ApiConfig
    from hyperlane.testing.fake_generator import Answer, FakeGenerator

    config = ApiConfig(drain_s={drain_s}, access_log={access_log})
    listener = bind_socket("127.0.0.1", 0)
    generator = FakeGenerator([Answer(("a",), gate=threading.Semaphore(1))])
    server = HttpServer(create_app(generator, config), listener, config)
    print(server.url, flush=True)
    print(server.run().name, generator.cancelled != [], flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent to one process there")
@pytest.mark.parametrize(
    ("signals", "drain_s"),
    [
        ([signal.SIGINT], 0.05),
        ([signal.SIGTERM], 0.05),
        ([signal.SIGINT] * 2, 1000),
        ([signal.SIGTERM, signal.SIGINT], 1000),
    ],
    ids=["ctrl-c", "terminate", "ctrl-c twice", "terminate, then ctrl-c"],
)
def test_a_signal_ends_running_answers_and_a_second_one_does_not_wait(signals, drain_s):
    program = textwrap.dedent(PROGRAM.format(drain_s=drain_s, access_log=False))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as server:
        url = server.stdout.readline().strip()
        body = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        with httpx.Client(base_url=url) as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.iter_text()
            seen = next(pieces)
            server.send_signal(signals[0])
            if len(signals) > 1:
                wait_until_refused(url)
                server.send_signal(signals[1])
            try:
                seen += "".join(pieces)
            except httpx.RemoteProtocolError:
                assert len(signals) > 1
            else:
                assert "shutting_down" in seen
        assert server.stdout.read().split() == [signals[0].name, "True"]
        assert server.stderr.read() == f"1 answer(s) may take {drain_s:g} s to end; a second signal does not wait\n"
        assert server.wait(20) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent to one process there")
@pytest.mark.parametrize("access_log", [True, False])
def test_requests_are_logged_when_that_is_asked_for(access_log):
    program = textwrap.dedent(PROGRAM.format(drain_s=1, access_log=access_log))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as server:
        httpx.get(server.stdout.readline().strip() + "/health")
        server.terminate()
        assert ('"GET /health HTTP/1.1" 200' in server.stderr.read()) == access_log


def wait_until_refused(url: str) -> None:
    """The first signal has arrived when nobody accepts any more."""
    while True:
        try:
            httpx.get(f"{url}/health")
        except httpx.TransportError:
            return
