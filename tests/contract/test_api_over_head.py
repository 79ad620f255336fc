"""HTTP over a real head and a ring of fake engines: whole requests, real frames, no model."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass

import httpx
import openai
import pytest

from hyperlane.api import HttpServer, bind_socket, create_app
from hyperlane.config import ApiConfig
from hyperlane.core import ChatMessage, TextGenerator
from hyperlane.head.head import Head
from hyperlane.head.options import HeadOptions
from hyperlane.head.service import HeadService
from hyperlane.testing.byte_tokenizer import ByteTokenizer
from hyperlane.testing.engine_ring import engine_ring
from hyperlane.testing.fake_engine import FakeEngine, FakeFaults, fake_generate
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs

ENDLESS = 1_000_000
"""A context that no test reaches the end of."""


class Turns:
    """A chat template of bytes."""

    def encode(self, messages: Sequence[ChatMessage]) -> Sequence[int]:
        return tuple("".join(f"{message.role}:{message.content};" for message in messages).encode())


@dataclass(frozen=True, slots=True)
class Rig:
    """A head behind an HTTP server. `attach`: serve with another pipeline, one that fails in a step, from now on."""

    head: Head
    attach: Callable[..., None]
    server: HttpServer
    client: openai.OpenAI

    def ask(self, prompt: str = "go", **fields: object):
        extra = {"ignore_eos": True, **fields.pop("extra_body", {})}
        return self.client.completions.create(
            **{"model": "toy", "prompt": prompt, "temperature": 0, "extra_body": extra, **fields}
        )

    def send(self, **fields: object) -> socket.socket:
        """An endless request on a connection of its own, read until its first token when it is streamed."""
        body = json.dumps({"model": "toy", "prompt": "go", "max_tokens": ENDLESS - 2, "ignore_eos": True, **fields})
        connection = socket.create_connection((self.server.address.host, self.server.address.port))
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        return connection


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    with ExitStack() as stack:

        def start(slots: int = 4, context: int = 512, options: HeadOptions = HeadOptions(), **fields: object) -> Rig:  # noqa: B008 (frozen)
            facts = toy_facts(context=context)
            plan = toy_plan(facts, stages=2, slots=slots)
            head = Head(facts, ByteTokenizer(), options)
            epochs = itertools.count(1)

            def attach(raises_at: int | None = None) -> None:
                epoch = next(epochs)
                specs, faults = toy_specs(plan, epoch), FakeFaults(raises_at=raises_at)
                ring = stack.enter_context(engine_ring(specs, [FakeEngine(spec, faults=faults) for spec in specs]))
                head.attach(ring, plan, epoch)

            attach(fields.pop("raises_at", None))
            stack.callback(head.close)
            service: TextGenerator = HeadService(head, ByteTokenizer(), Turns())
            head.warm_up()
            config = ApiConfig(**{"drain_s": 0.05, **fields})
            server = HttpServer(create_app(service, config), bind_socket("127.0.0.1", 0), config)
            server.start()
            stack.callback(server.stop)
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
            return Rig(head, attach, server, stack.enter_context(client))

        yield start


def test_answers_are_the_models_streamed_and_whole_alone_and_together(rig):
    running = rig()
    prompts = [f"prompt {number}" for number in range(12)]

    def both(prompt: str) -> tuple[str, str]:
        streamed = "".join(chunk.choices[0].text for chunk in running.ask(prompt, max_tokens=40, stream=True))
        return running.ask(prompt, max_tokens=40).choices[0].text, streamed

    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(both, prompts))
    for prompt, (whole, streamed) in zip(prompts, answers, strict=True):
        assert whole == streamed == ByteTokenizer().decode(fake_generate(prompt.encode(), 40, toy_facts()))


def test_a_seed_makes_every_choice_repeatable_and_none_the_same(rig):
    running = rig()
    options = {"temperature": 2, "seed": 7, "n": 3, "max_tokens": 30}
    first, again = running.ask(**options), running.ask(**options)
    texts = [choice.text for choice in first.choices]
    assert [choice.text for choice in again.choices] == texts
    assert len(set(texts)) == 3
    assert running.ask(**{**options, "n": 1}).choices[0].text == texts[0]


def test_log_probabilities_come_from_the_model(rig):
    logprobs = rig().ask(max_tokens=5, logprobs=3).choices[0].logprobs
    assert len(logprobs.token_logprobs) == 5
    assert all(len(top) == 3 for top in logprobs.top_logprobs)
    assert [max(top.values()) for top in logprobs.top_logprobs] == logprobs.token_logprobs


def test_usage_counts_what_was_generated(rig):
    *_, last = rig().ask("abc", max_tokens=9, stream=True, stream_options={"include_usage": True})
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 9)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_for_the_next(rig, stream):
    running = rig(slots=1, context=ENDLESS)
    with closing(running.send(stream=stream)) as connection:
        if stream:
            assert connection.recv(64).startswith(b"HTTP/1.1 200")
    assert running.ask(max_tokens=3).usage.completion_tokens == 3


def test_a_request_beyond_the_queue_is_429(rig):
    running = rig(slots=1, options=HeadOptions(queue=1), context=ENDLESS)
    with closing(running.send(stream=True)) as connection:
        assert connection.recv(64)
        with pytest.raises(openai.RateLimitError) as refused:
            running.ask(n=2)
        assert int(refused.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("said", ["field", "header", "server"])
def test_an_answer_that_takes_too_long_ends_in_an_error_and_its_slot_is_free(rig, said):
    running = rig(slots=1, context=ENDLESS, request_timeout_s=0.3 if said == "server" else 60)
    fields = {"max_tokens": ENDLESS - 2}
    if said == "field":
        fields["extra_body"] = {"timeout_s": 0.3}
    if said == "header":
        fields["extra_headers"] = {"x-request-timeout": "0.3"}
    with pytest.raises(openai.APIStatusError, match=r"0\.3 s that this request may take are over") as late:
        running.ask(**fields)
    assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
    stream = running.ask(**fields, stream=True)
    next(stream)
    with pytest.raises(openai.APIError, match="tokens were made") as cut:
        list(stream)
    assert cut.value.code == "deadline_exceeded"
    assert running.ask(max_tokens=3).usage.completion_tokens == 3
    assert running.head.status().endings.deadline == 2


@pytest.mark.parametrize("header", ["0", "-1", "soon", "nan", "1e9", ""])
def test_a_header_that_is_no_time_is_refused(rig, header):
    with pytest.raises(openai.BadRequestError) as refused:
        rig().ask(extra_headers={"x-request-timeout": header})
    assert refused.value.param == "x-request-timeout"


def test_a_lost_pipeline_ends_streams_with_an_error_and_refuses_new_requests(rig):
    running = rig(context=ENDLESS)
    stream = running.ask(max_tokens=ENDLESS - 2, stream=True)
    next(stream)
    running.head.detach("stage 1 was lost")
    with pytest.raises(openai.APIError, match="stage 1 was lost") as cut:
        list(stream)
    assert cut.value.code == "no_pipeline"
    with pytest.raises(openai.InternalServerError, match="stage 1 was lost") as refused:
        running.ask()
    assert refused.value.status_code == 503
    with pytest.raises(openai.InternalServerError):
        running.client.get("/../ready", cast_to=object)


PATIENT = HeadOptions(recovery_timeout_s=60)


def test_a_stream_stays_open_while_workers_are_replaced_and_says_in_the_end_how_long_it_took(rig):
    running = rig(raises_at=5, options=PATIENT, heartbeat_s=0.05)
    asked = {"model": "toy", "prompt": "go", "temperature": 0, "max_tokens": 30, "ignore_eos": True}
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    lines, silences = [], 0
    with httpx.stream("POST", f"{running.server.url}/v1/completions", json=asked) as stream:
        for line in stream.iter_lines():
            lines.append(line)
            silences += line.startswith(":")
            if line.startswith(":") and silences == 2:
                running.attach()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])
    assert text == ByteTokenizer().decode(fake_generate(b"go", 30, toy_facts()))
    assert chunks[-1]["usage"]["paused_s"] > 0.05
    assert lines[-2:] == ["data: [DONE]", ""]
    assert "paused_s" not in running.ask(max_tokens=3).usage.model_dump()


@pytest.mark.parametrize("stream", [True, False])
def test_no_pipeline_within_the_stated_time_is_503_or_an_error_in_an_open_stream(rig, stream):
    running = rig(raises_at=5, options=HeadOptions(recovery_timeout_s=0.2))
    with pytest.raises(openai.APIError, match=r"no other was ready within 0\.2 s") as lost:
        list(running.ask(max_tokens=30, stream=stream))
    assert lost.value.code == "no_pipeline"
    assert getattr(lost.value, "status_code", None) == (None if stream else 503)
    with pytest.raises(openai.InternalServerError, match=r"within 0\.2 s") as waited:
        running.ask(stream=stream)
    assert waited.value.response.headers["retry-after"]
    running.attach()
    assert running.ask(max_tokens=3).usage.completion_tokens == 3


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(rig):
    with pytest.raises(openai.BadRequestError, match="512") as refused:
        rig().ask("x" * 600)
    assert (refused.value.param, refused.value.code) == ("prompt", "context_length_exceeded")
