"""What a server says of itself, and how methods other than the usual ones are answered."""

from __future__ import annotations

import openai
import pytest


def test_the_one_model_is_listed(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("toy", "model", "hyperlane")


@pytest.mark.parametrize("name", ["toy", "TOY", "toy.gguf", "stem-Q4_0", "stem-Q4_0.gguf", "demo", "org/demo"])
def test_a_model_is_found_under_all_its_names(serve, connect, generator, name):
    server = serve(generator, aliases=("stem-Q4_0",), names=("demo", "org/demo"))
    with connect(server) as client:
        assert client.models.retrieve(name).id == "toy"
        answer = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}])
    assert answer.model == "toy"


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-4o")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="toy") as refused:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_health_is_there_whatever_the_pipeline_does(http, generator):
    generator.is_ready = False
    assert http.get("/health").status_code == 200


def test_ready_follows_the_generator(http, generator):
    assert http.get("/ready").json() == {"status": "ready"}
    generator.is_ready = False
    answer = http.get("/ready")
    assert answer.status_code == 503
    assert "every stage" in answer.json()["reason"]


def test_the_root_points_to_the_rest(http):
    assert http.get("/").json()["base_url"] == "/v1"


def test_the_description_names_every_field_of_a_request(http):
    description = http.get("/openapi.json").json()
    schemas = description["components"]["schemas"]
    body = description["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].rpartition("/")[2] == "ChatRequest"
    assert {"messages", "temperature", "top_k", "stream_options"} <= set(schemas["ChatRequest"]["properties"])
    assert {"prompt", "best_of"} <= set(schemas["CompletionRequest"]["properties"])
    assert {"Message", "ContentPart", "StreamOptions"} <= set(schemas)


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/v1/models", "/v1/models/toy", "/openapi.json"])
def test_head_says_what_get_would_without_a_body(http, path):
    head, get = http.head(path), http.get(path)
    assert (head.status_code, head.headers["content-length"]) == (200, get.headers["content-length"])
    assert head.content == b""


@pytest.mark.parametrize(
    ("path", "allowed"), [("/v1/models", "GET, HEAD, OPTIONS"), ("/v1/completions", "POST, OPTIONS")]
)
def test_options_says_what_is_allowed(http, path, allowed):
    answer = http.options(path)
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allowed, b"")


def test_every_answer_has_an_id_of_its_own(http, client):
    ids = {http.get("/health").headers["x-request-id"], http.get("/nowhere").headers["x-request-id"]}
    assert len(ids) == 2
    assert client.models.with_raw_response.list().headers["x-request-id"].startswith("req_")
