"""The official client, the real engine, and a worker that is killed in mid-stream: the client sees the whole answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import openai
import psutil
import pytest

from hyperlane.api import HttpServer, bind_socket, create_app
from hyperlane.config import ApiConfig, ServeConfig, load
from hyperlane.node import Serving, start_serving

pytestmark = pytest.mark.slow

QUESTIONS = (
    ({"temperature": 0}, "Tell me a story about a lighthouse."),
    ({"temperature": 0.9, "seed": 7}, "List some fruits, and say how each one tastes."),
    ({"temperature": 1.2, "seed": 8, "presence_penalty": 1.0}, "Why is the sky blue?"),
)
TOKENS = 60


@pytest.fixture(scope="module")
def serving(smollm2_path: Path) -> Iterator[Serving]:
    settings = {"model": str(smollm2_path), "local_workers": 2, "threads": 1, "context": 512, "slots": 3}
    with start_serving(load(ServeConfig, **settings)) as serving:
        yield serving


@pytest.fixture(scope="module")
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    config = ApiConfig(drain_s=0.5)
    server = HttpServer(create_app(serving.service, config), bind_socket("127.0.0.1", 0), config)
    server.start()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client
    server.stop()


def chunks(client: openai.OpenAI, options: dict, question: str):
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=messages,
        max_tokens=TOKENS,
        stream=True,
        extra_body={"ignore_eos": True},
        **options,
    )


def text(stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_three_streams_survive_the_death_of_a_worker_with_every_token_as_it_was(client, serving):
    undisturbed = [text(chunks(client, *question)) for question in QUESTIONS]
    streams = [chunks(client, *question) for question in QUESTIONS]
    begun = [next(stream).choices[0].delta.content or "" for stream in streams]
    with ThreadPoolExecutor(len(streams)) as readers:
        rests = [readers.submit(text, stream) for stream in streams]
        while serving.service.status().completion_tokens < TOKENS * len(streams) * 1.3:
            assert wait(rests, 0.01).not_done
        port = serving.plan.stages[1].worker.control.port
        (pid,) = {one.pid for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status == "LISTEN"}
        psutil.Process(pid).kill()
        answers = [first + rest.result() for first, rest in zip(begun, rests, strict=True)]
    assert answers == undisturbed
    assert serving.service.status().losses == 1
