"""Keys, names in the Host header, and which web pages may call."""

from __future__ import annotations

import httpx
import openai
import pytest

from hyperlane.api.auth import host_name, is_loopback, is_private_name
from hyperlane.config import ApiConfig

BODY = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}
OPEN, CLOSED = ["/", "/health", "/ready"], ["/v1/models", "/v1/models/toy", "/openapi.json", "/nowhere"]


@pytest.fixture
def locked(serve, generator):
    return serve(generator, key=("first-key", "second-key"))


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_any_of_the_keys_opens(locked, connect, key):
    with connect(locked, key) as client:
        assert client.models.list().data
        assert client.chat.completions.create(**BODY).choices


@pytest.mark.parametrize("key", ["first-key2", "first", "x", "ключ", "first-key second-key"])
def test_a_wrong_key_is_refused(locked, connect, generator, key):
    with httpx.Client(base_url=locked.url) as http:
        answer = http.post("/v1/chat/completions", json=BODY, headers={"authorization": f"Bearer {key}".encode()})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert generator.requests == []


def test_the_client_raises_its_authentication_error(locked, connect):
    with connect(locked, "wrong") as client, pytest.raises(openai.AuthenticationError) as refused:
        client.models.list()
    assert refused.value.code == "invalid_api_key"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic first-key", "first-key"])
@pytest.mark.parametrize("path", CLOSED)
def test_without_a_key_all_but_the_open_paths_are_closed(locked, path, header):
    with httpx.Client(base_url=locked.url) as http:
        answer = http.get(path, headers={} if header is None else {"authorization": header})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("path", OPEN)
def test_the_open_paths_need_no_key(locked, path):
    with httpx.Client(base_url=locked.url) as http:
        assert http.get(path).status_code == 200
        assert http.head(path).status_code == 200


def test_without_configured_keys_any_key_is_as_good(client):
    assert client.models.list().data


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "https://localhost", "http://127.0.0.1:8080", "http://[::1]:80", "tauri://localhost"],
)
def test_pages_of_this_machine_may_call(http, origin):
    preflight = http.options("/v1/chat/completions", headers={"origin": origin, **PREFLIGHT})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    answer = http.post("/v1/chat/completions", json=BODY, headers={"origin": origin})
    assert answer.headers["access-control-allow-origin"] == origin
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "null",
        "http://xlocalhost",
    ],
)
def test_other_pages_may_not_call_a_server_without_a_key(http, origin):
    preflight = http.options("/v1/chat/completions", headers={"origin": origin, **PREFLIGHT})
    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in preflight.headers
    answer = http.get("/v1/models", headers={"origin": origin})
    assert "access-control-allow-origin" not in answer.headers


def test_a_key_lets_pages_from_anywhere_call(locked):
    with httpx.Client(base_url=locked.url) as http:
        origin = {"origin": "https://chat.example"}
        preflight = http.options("/v1/chat/completions", headers={**origin, **PREFLIGHT})
        refused = http.post("/v1/chat/completions", json=BODY, headers=origin)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, "*")
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "*")


def test_configured_origins_are_the_only_ones(serve, generator):
    server = serve(generator, cors_origins=("https://chat.example",))
    with httpx.Client(base_url=server.url) as http:
        allowed = http.get("/v1/models", headers={"origin": "https://chat.example"})
        other = http.get("/v1/models", headers={"origin": "http://localhost:3000"})
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
    assert "access-control-allow-origin" not in other.headers


def test_a_stream_may_be_read_by_a_page(http):
    headers = {"origin": "http://localhost:3000"}
    answer = http.post("/v1/chat/completions", json={**BODY, "stream": True}, headers=headers)
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/"])
def test_a_name_that_was_rebound_to_loopback_is_refused(http, host, path):
    answer = http.get(path, headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "host", ["localhost:1", "LOCALHOST", "127.0.0.1", "[::1]:80", "host.docker.internal:80", "app.localhost"]
)
def test_addresses_and_private_names_are_answered(http, host):
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "fields", [{"hosts": ("llm.example",)}, {"hosts": ("*",)}, {"key": ("k",)}, {"host": "0.0.0.0"}], ids=str
)
def test_other_names_are_answered_when_they_are_allowed_or_harmless(serve, generator, fields):
    with httpx.Client(base_url=serve(generator, **fields).url) as http:
        assert http.get("/health", headers={"host": "llm.example"}).status_code == 200


@pytest.mark.parametrize(
    ("header", "name"),
    [("LocalHost:80", "localhost"), ("[::1]:80", "::1"), ("a.example.", "a.example"), ("", ""), ("1.2.3.4", "1.2.3.4")],
)
def test_a_host_header_is_a_name_and_a_port(header, name):
    assert host_name(header) == name


def test_private_names_are_those_that_nobody_can_rebind():
    assert all(map(is_private_name, ["localhost", "a.localhost", "192.168.1.2", "fe80::1", "host.docker.internal"]))
    assert not any(map(is_private_name, ["a.example", "internal.example", "notlocalhost", "a.local"]))


def test_loopback_addresses_are_those_of_this_machine_alone():
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.1.2", "machine.lan"]))


def test_an_empty_list_of_keys_is_an_error_and_not_an_open_door():
    with pytest.raises(Exception, match="one text at least"):
        ApiConfig(key="")
