"""Keys of several users, each with its own limits: the file, what a client is told, and what is counted."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import httpx
import openai
import pytest

from hyperlane.api.keys import KeyRing
from hyperlane.api.limits import KeyLimits
from hyperlane.config import ApiConfig
from hyperlane.errors import ConfigError
from hyperlane.testing.fake_generator import Answer, FakeGenerator

HELLO = [{"role": "user", "content": "hi"}]
TEAM = f"""
[anna]
key = "anna-secret"
concurrent = 1

[ben]
sha256 = "{hashlib.sha256(b"ben-secret").hexdigest()}"
requests_per_minute = 2
tokens_per_minute = 0
"""


@pytest.fixture
def team(tmp_path: Path) -> Path:
    file = tmp_path / "keys.toml"
    file.write_text(TEAM)
    return file


def rewrite(file: Path, text: str) -> None:
    """As an editor does: a new file in the place of the old one."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, file)


def ask(client: openai.OpenAI, **fields: object):
    return client.chat.completions.create(model="toy", messages=HELLO, **fields)


def test_each_key_of_the_file_has_its_own_limits_and_others_the_usual_ones(team):
    ring = KeyRing(ApiConfig(key=("plain",), keys_file=team, key_tokens_per_minute=500))
    assert ring.find("anna-secret").limits == KeyLimits(concurrent=1, tokens_per_minute=500)
    assert ring.find("ben-secret").limits == KeyLimits(requests_per_minute=2)
    assert ring.find("plain").limits == KeyLimits(tokens_per_minute=500)
    assert (ring.find("plain").name, ring.find("wrong")) == ("key-1", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[anna]\nconcurrent = 1", "give either 'key' or 'sha256'"),
        ('[anna]\nkey = "a"\nsha256 = "b"', "give either 'key' or 'sha256'"),
        ('[anna]\nsha256 = "short"', "64 hexadecimal digits"),
        ("[anna]\nkey = 7", "must be a text"),
        ('[anna]\nkey = "a"\nconcurrent = "many"', r"\[anna\] concurrent"),
        ('[anna]\nkey = "a"\nconcurent = 3', "did you mean concurrent"),
        ('anna = "secret"', "must be a section"),
        ('[anna]\nkey = "a"\n[ben]\nkey = "a"', "are the same"),
        ('[key-1]\nkey = "a"', "choose another"),
        ("[anna", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path, text, said):
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        KeyRing(ApiConfig(key=("plain",), keys_file=file))


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        KeyRing(ApiConfig(keys_file=tmp_path / "none.toml"))


def test_a_change_of_the_file_holds_from_the_next_request_on(serve, connect, team):
    server = serve(FakeGenerator(), keys_file=team)
    with connect(server, "anna-secret") as anna, connect(server, "carl-secret") as carl:
        ask(anna)
        with pytest.raises(openai.AuthenticationError):
            ask(carl)
        rewrite(team, '[carl]\nkey = "carl-secret"\n')
        ask(carl)
        with pytest.raises(openai.AuthenticationError):
            ask(anna)
        rewrite(team, "[carl")
        ask(carl)


def test_a_key_has_so_many_answers_at_once_and_the_others_are_not_touched(serve, connect, team):
    gate = threading.Semaphore(0)
    generator = FakeGenerator([Answer(("a", "b"), gate=gate)])
    server = serve(generator, keys_file=team)
    with connect(server, "anna-secret") as anna, connect(server, "ben-secret") as ben:
        gate.release()
        first = ask(anna, stream=True)
        next(first)
        with pytest.raises(openai.RateLimitError, match="'anna' may use 1 answers at once") as refused:
            ask(anna)
        assert refused.value.code == "rate_limit_exceeded"
        assert int(refused.value.response.headers["retry-after"]) >= 1
        gate.release(100)
        ask(ben)
        list(first)
        ask(anna)
    assert len(generator.requests) == 3


def test_a_client_that_leaves_gives_its_place_back(serve, connect, team):
    gate = threading.Semaphore(1)
    generator = FakeGenerator([Answer(("a", "b"), gate=gate)])
    with connect(serve(generator, keys_file=team), "anna-secret") as anna:
        stream = ask(anna, stream=True)
        next(stream)
        stream.close()
        while not generator.cancelled:
            pass
        gate.release(100)
        ask(anna)


def test_more_answers_than_a_key_ever_has_are_refused_for_good(serve, connect, team):
    with connect(serve(FakeGenerator(), keys_file=team), "anna-secret") as anna:
        with pytest.raises(openai.RateLimitError, match="2 answers at once") as refused:
            ask(anna, n=2)
        assert "retry-after" not in refused.value.response.headers
        assert refused.value.response.headers["x-should-retry"] == "false"


def test_tokens_of_a_minute_are_prompts_and_answers(serve, connect):
    with connect(serve(FakeGenerator(), key=("k",), key_tokens_per_minute=30), "k") as client:
        used = ask(client).usage
        assert used.total_tokens > 20
        with pytest.raises(openai.RateLimitError) as refused:
            ask(client)
        assert (refused.value.type, refused.value.code) == ("tokens", "rate_limit_exceeded")
        missing = used.prompt_tokens - (30 - used.total_tokens)
        assert int(refused.value.response.headers["retry-after"]) <= missing * 2 + 1


def test_a_request_that_the_head_refuses_costs_the_key_nothing(serve, connect, generator):
    with connect(serve(generator, key=("k",), key_requests_per_minute=1), "k") as client:
        with pytest.raises(openai.BadRequestError):
            ask(client, max_tokens=1 << 20)
        ask(client)
        with pytest.raises(openai.RateLimitError):
            ask(client)


def test_what_a_key_used_and_was_refused_is_in_the_metrics(serve, connect, team):
    server = serve(FakeGenerator(), keys_file=team)
    with connect(server, "ben-secret") as ben:
        ask(ben)
        ask(ben)
        with pytest.raises(openai.RateLimitError):
            ask(ben)
    with httpx.Client(base_url=server.url, headers={"authorization": "Bearer anna-secret"}) as http:
        answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'hyperlane_key_requests_total{key="ben"} 2.0' in answer.text
    assert 'hyperlane_key_requests_refused_total{key="ben",limit="requests_per_minute"} 1.0' in answer.text
    assert "ben-secret" not in answer.text


def test_metrics_are_shown_to_nobody_without_a_key(serve, team):
    with httpx.Client(base_url=serve(FakeGenerator(), keys_file=team).url) as http:
        assert http.get("/metrics").status_code == 401
