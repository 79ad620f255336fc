"""The head is killed in the middle of an answer and started again: the same workers serve the next one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import httpx
import pytest

from hyperlane.testing.program import Program
from hyperlane.testing.tiny_models import write_tiny_model

ROOM = 120 << 20
"""Bytes of a worker: enough for its stage, not for two of them."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Answers do not end before the context of 8192 tokens does."""
    return str(write_tiny_model(tmp_path_factory.mktemp("models") / "talkative.gguf", context=8192))


@pytest.fixture
def hyperlane(hyperlane_home) -> Iterator[Callable[..., Program]]:
    """Starts programs, and ends them with the test."""
    programs: list[Program] = []

    def start(*arguments: str) -> Program:
        programs.append(Program(*arguments, home=hyperlane_home))
        return programs[-1]

    yield start
    for program in programs:
        program.__exit__(None, None, None)


def url_of(serve: Program) -> str:
    return re.search(r"http://\S+?(?=/v1)", serve.wait_for("ready: "))[0]


def asked(model: str, **fields: object) -> dict[str, object]:
    return {"model": model, "prompt": "the", "temperature": 0, "ignore_eos": True, "max_tokens": 12, **fields}


def test_a_head_that_is_killed_in_mid_stream_is_started_again_and_serves_with_the_same_workers(hyperlane, model):
    # What the killed head left there must go: nothing else would fit.
    workers = [hyperlane("worker", "--listen", "127.0.0.1:0", "--announce", "--memory", f"{ROOM}") for _ in range(2)]
    ports = [json.loads(worker.wait_for("{"))["port"] for worker in workers]
    at = [part for port in ports for part in ("--worker", f"127.0.0.1:{port}")]
    arguments = ("serve", model, "--port", "0", "--no-join", *at)

    head = hyperlane(*arguments)
    with httpx.Client(base_url=url_of(head), timeout=30) as client:
        before = client.post("/v1/completions", json=asked(model)).json()["choices"]
        with client.stream("POST", "/v1/completions", json=asked(model, max_tokens=8000, stream=True)) as stream:
            lines = stream.iter_lines()
            seen = [next(lines) for _ in range(6)]
            head.kill()
            with pytest.raises(httpx.RemoteProtocolError):  # the connection ends; nothing is said besides
                seen += lines
    assert "error" not in "".join(seen)
    assert head.survivors() == []

    with httpx.Client(base_url=url_of(hyperlane(*arguments)), timeout=30) as client:
        assert client.post("/v1/completions", json=asked(model)).json()["choices"] == before
        stages = client.get("/status").json()["plan"]["stages"]
        assert [stage["worker"]["control"]["port"] for stage in stages] == ports
        for stage in stages:
            assert 2 * (stage["weight_bytes"] + stage["kv_bytes"] + stage["workspace_bytes"]) > ROOM
    assert all(worker.is_running for worker in workers)
