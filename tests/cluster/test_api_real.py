"""The official client against two real worker processes and the real SmolLM2-135M-Instruct."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from hyperlane.api import HttpServer, bind_socket, create_app
from hyperlane.config import ApiConfig, ServeConfig, load
from hyperlane.core import ChatMessage
from hyperlane.node import Serving, start_serving

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
GREEDY = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def serving(smollm2_path: Path) -> Iterator[Serving]:
    settings = {"model": str(smollm2_path), "local_workers": 2, "threads": 1, "context": 1024, "slots": 4}
    with start_serving(load(ServeConfig, **settings)) as serving:
        yield serving


@pytest.fixture(scope="module")
def server(serving: Serving, smollm2_path: Path) -> Iterator[HttpServer]:
    config = ApiConfig(drain_s=0.5)
    app = create_app(serving.service, config, aliases=("smollm2-135m", smollm2_path.stem))
    server = HttpServer(app, bind_socket("127.0.0.1", 0), config)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(server: HttpServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **fields: object):
    return client.chat.completions.create(**{"model": "smollm2-135m", "messages": QUESTION, **GREEDY, **fields})


def streamed(client: openai.OpenAI, **fields: object) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, stream=True, **fields))


def test_the_model_knows_the_capital_of_france(client):
    answer = ask(client)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert 20 < answer.usage.prompt_tokens < 60
    assert answer.usage.completion_tokens < 24


def test_a_stream_is_the_whole_answer_piece_by_piece(client):
    assert streamed(client) == ask(client).choices[0].message.content


def test_the_next_turn_of_a_chat_computes_that_turn_alone(client, serving):
    before = serving.service.status()
    first = ask(client)
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    turn = [*QUESTION, answer, {"role": "user", "content": "And of Spain?"}]
    second = ask(client, messages=turn)
    known = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage.prompt_tokens_details.cached_tokens >= known - 3
    assert "Madrid" in second.choices[0].message.content
    after = serving.service.status()
    assert after.requests_continued > before.requests_continued
    assert after.cached_tokens >= before.cached_tokens + known - 3


def test_a_chat_is_its_template_continued(client, serving):
    ids = serving.service.encode_chat([ChatMessage("user", QUESTION[0]["content"])])
    continued = client.completions.create(model="smollm2-135m", prompt=list(ids), **GREEDY)
    assert continued.choices[0].text == ask(client).choices[0].message.content


def test_special_tokens_in_a_message_are_plain_text(client):
    def prompt_tokens(text: str) -> int:
        return ask(client, messages=[{"role": "user", "content": text}], max_tokens=1).usage.prompt_tokens

    assert prompt_tokens("Hi<|im_end|>") > prompt_tokens("Hi") + 1


def test_eight_clients_at_once_get_what_each_gets_alone(client):
    questions = [[{"role": "user", "content": f"Count to {number}."}] for number in range(2, 10)]
    alone = [ask(client, messages=question).choices[0].message.content for question in questions]
    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(lambda question: streamed(client, messages=question), questions))
    assert together == alone


def test_a_seed_repeats_every_choice(client):
    options = {"temperature": 1.2, "seed": 11, "n": 2, "max_tokens": 12}
    first, again = ask(client, **options), ask(client, **options)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.message.content for choice in again.choices] == texts
    assert texts[0] != texts[1]
    assert first.system_fingerprint == again.system_fingerprint


def test_a_stop_text_ends_the_answer_before_it(client):
    whole = ask(client).choices[0].message.content
    cut = ask(client, stop=[" Paris"])
    assert cut.choices[0].finish_reason == "stop"
    assert whole.startswith(cut.choices[0].message.content + " Paris")
    assert streamed(client, stop=" Paris") == cut.choices[0].message.content


def test_log_probabilities_are_those_of_the_greedy_answer(client):
    choice = ask(client, logprobs=True, top_logprobs=5).choices[0]
    assert "".join(entry.token for entry in choice.logprobs.content).startswith(choice.message.content)
    for entry in choice.logprobs.content:
        tops = [top.logprob for top in entry.top_logprobs]
        assert tops == sorted(tops, reverse=True)
        assert math.isclose(entry.logprob, tops[0], abs_tol=1e-4)
        assert sum(map(math.exp, tops)) < 1.0001


def test_a_bias_forbids_a_token(client, serving):
    (paris,) = serving.service.encode(" Paris")
    assert "Paris" not in ask(client, logit_bias={str(paris): -100}, max_tokens=12).choices[0].message.content


def test_a_text_is_continued_from_words_and_from_token_ids_alike(client, serving):
    text = "The capital of France is"
    words = client.completions.create(model="smollm2-135m", prompt=text, **GREEDY)
    ids = client.completions.create(model="smollm2-135m", prompt=list(serving.service.encode(text)), **GREEDY)
    assert words.choices[0].text == ids.choices[0].text
    assert "Paris" in words.choices[0].text


def test_a_long_prompt_is_answered_and_a_longer_one_refused(client):
    long = [{"role": "user", "content": "word " * 900}]
    assert ask(client, messages=long, max_tokens=4).usage.prompt_tokens > 900
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, messages=[{"role": "user", "content": "word " * 1100}], max_tokens=4)
    assert refused.value.code == "context_length_exceeded"


def test_clients_that_leave_free_their_slots(client, server, serving):
    endless = {"max_tokens": 900, "extra_body": {"ignore_eos": True}}
    for _ in range(8):  # more than there are slots
        with ask(client, stream=True, **endless) as stream:
            next(iter(stream))
    assert ask(client, max_tokens=2).usage.completion_tokens == 2
    with socket.create_connection((server.address.host, server.address.port)) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(64).startswith(b"HTTP/1.1 415")


def test_the_server_is_ready_and_says_what_runs(client, server, serving):
    assert client.models.retrieve("smollm2-135m").id == serving.service.facts.name
    assert serving.service.ready()
    assert [str(stage.layers) for stage in serving.plan.stages] == ["0-14", "15-29"]
