"""Clients that go away or read slowly, and servers that stop: over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import openai
import pytest

from hyperlane.api import HttpServer
from hyperlane.core import Event, GenerationRequest, TextDelta
from hyperlane.testing.fake_generator import Answer, FakeGenerator

HELLO = [{"role": "user", "content": "hi"}]


class Announced(list):
    """A list that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._grown = threading.Condition()

    def append(self, item: object) -> None:
        with self._grown:
            super().append(item)
            self._grown.notify_all()

    def wait(self, length: int) -> None:
        with self._grown:
            assert self._grown.wait_for(lambda: len(self) >= length, timeout=20)


def gated(releases: int = 0) -> tuple[FakeGenerator, threading.Semaphore]:
    """A generator whose events wait for the gate."""
    gate = threading.Semaphore(releases)
    generator = FakeGenerator([Answer(("a", "b", "c"), gate=gate)])
    generator.cancelled = Announced()
    generator.requests = Announced()
    return generator, gate


def send(server: HttpServer, **fields: object) -> socket.socket:
    """Send a chat request and leave the answer unread."""
    body = json.dumps({"model": "toy", "messages": HELLO, **fields}).encode()
    connection = socket.create_connection((server.address.host, server.address.port))
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    seen = b""
    while mark not in seen:
        piece = connection.recv(4096)
        assert piece, seen
        seen += piece
    return seen


def test_a_client_that_leaves_in_mid_stream_cancels_its_request(serve):
    generator, _ = gated(releases=1)
    with closing(send(serve(generator), stream=True)) as connection:
        read_until(connection, b'"content": "a"')
    generator.cancelled.wait(1)
    assert generator.cancelled == [generator.requests[0].request_id]


def test_a_client_that_leaves_before_the_first_token_cancels_its_request(serve):
    generator, _ = gated()
    with closing(send(serve(generator), stream=True)):
        generator.requests.wait(1)
    generator.cancelled.wait(1)


@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_while_a_whole_answer_is_made_cancels_its_requests(serve, n):
    generator, _ = gated()
    with closing(send(serve(generator), n=n)):
        generator.requests.wait(n)
    generator.cancelled.wait(n)
    assert sorted(generator.cancelled) == [request.request_id for request in generator.requests]


def test_a_client_that_closes_its_stream_cancels_its_request(serve, connect):
    generator, _ = gated(releases=1)
    with connect(serve(generator)) as client:
        stream = client.chat.completions.create(model="toy", messages=HELLO, stream=True)
        next(stream)
        stream.close()
    generator.cancelled.wait(1)


async def test_an_asynchronous_client_that_is_cancelled_cancels_its_request(serve):
    generator, _ = gated()
    server = serve(generator)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        asking = asyncio.create_task(client.chat.completions.create(model="toy", messages=HELLO))
        await asyncio.to_thread(generator.requests.wait, 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    await asyncio.to_thread(generator.cancelled.wait, 1)


def test_a_client_that_reads_to_the_end_cancels_nothing(serve, connect):
    generator, _ = gated(releases=100)
    with connect(serve(generator)) as client:
        list(client.chat.completions.create(model="toy", messages=HELLO, stream=True))
        client.chat.completions.create(model="toy", messages=HELLO)
    assert generator.cancelled == []


def test_pieces_are_sent_as_they_come(serve):
    generator, gate = gated()
    with closing(send(serve(generator), stream=True)) as connection:
        for piece in (b'"content": "a"', b'"content": "b"', b'"content": "c"'):
            gate.release()
            read_until(connection, piece)
        gate.release()
        read_until(connection, b"[DONE]")


class EndlessStream:
    """Deltas without end, as fast as they are taken, until cancelled."""

    def __init__(self) -> None:
        self.taken = 0
        self.cancelled = threading.Event()
        self.resting = threading.Event()

    def __iter__(self) -> Iterator[Event]:
        raise NotImplementedError

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop = asyncio.get_running_loop()
        while not self.cancelled.is_set():
            self.taken += 1
            # Not asked for the next one for a while: the reader is held back.
            rest = loop.call_later(0.3, self.resting.set)
            yield TextDelta("x" * 1000, (1,))
            rest.cancel()
            await asyncio.sleep(0)

    def cancel(self) -> None:
        self.cancelled.set()


class Endless(FakeGenerator):
    """Answers with one given stream."""

    def __init__(self, stream: EndlessStream) -> None:
        super().__init__()
        self._stream = stream

    def submit(self, request: GenerationRequest) -> EndlessStream:
        return self._stream


def test_a_client_that_does_not_read_holds_the_stream_back(serve):
    stream = EndlessStream()
    with closing(send(serve(Endless(stream)), stream=True)) as connection:
        assert stream.resting.wait(60)
        taken_bytes = stream.taken * 1000
        assert taken_bytes < 64 << 20  # what kernel buffers of a connection take, and little more
        assert not stream.cancelled.is_set()
        connection.settimeout(20)
        read_until(connection, b"data:")
    assert stream.cancelled.wait(20)


def test_stopping_does_not_wait_for_a_client_that_does_not_read(serve):
    stream = EndlessStream()
    server = serve(Endless(stream), drain_s=0.05)
    with closing(send(server, stream=True)):
        assert stream.resting.wait(60)
        server.stop()
    assert stream.cancelled.is_set()


def test_stopping_lets_a_running_answer_end(serve):
    generator, gate = gated(releases=1)
    server = serve(generator, drain_s=60)
    with closing(send(server, stream=True)) as connection:
        read_until(connection, b'"content": "a"')
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        gate.release(100)
        read_until(connection, b"[DONE]")
        stopping.join()
    assert generator.cancelled == []


def test_stopping_ends_an_answer_that_takes_too_long_with_an_error(serve):
    generator, _ = gated(releases=1)
    server = serve(generator, drain_s=0.05)
    with closing(send(server, stream=True)) as connection:
        read_until(connection, b'"content": "a"')
        server.stop()
        rest = read_until(connection, b"shutting_down")
    assert b"[DONE]" not in rest
    generator.cancelled.wait(1)


def test_stopping_ends_a_waiting_whole_answer_with_503(serve):
    generator, _ = gated()
    server = serve(generator, drain_s=0.05)
    with closing(send(server)) as connection:
        generator.requests.wait(1)
        server.stop()
        assert read_until(connection, b"shutting_down").startswith(b"HTTP/1.1 503")


def test_after_stopping_nobody_listens(serve, generator):
    server = serve(generator)
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.address.host, server.address.port))
