"""Requests that are wrong, and failures on the server's side, all in the shape of the OpenAI API."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from hyperlane.errors import EngineFault, LinkBroken, Overloaded, PipelineLost
from hyperlane.testing.fake_generator import Answer, FakeGenerator

HELLO = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def ask(client: openai.OpenAI, **fields: object):
    return client.chat.completions.create(**{"model": "toy", "messages": HELLO, **fields})


def error_of(answer: httpx.Response) -> dict[str, object]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"{'model': 'toy'}",
        b'{"model": "toy"} trailing',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"temperature": NaN}',
        b"[" * 100_000,
        b"[1]",
        b"null",
        b'"text"',
        b"\x00",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_no_json_object_is_refused(http, generator, body):
    answer = http.post(CHAT, content=body, headers=JSON)
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "invalid_json"
    assert generator.requests == []


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "garbage"])
def test_a_body_that_is_not_declared_as_json_is_refused(http, kind):
    body = json.dumps({"model": "toy", "messages": HELLO}).encode()
    answer = http.post(CHAT, content=body, headers={"content-type": kind} if kind else {})
    assert answer.status_code == 415
    assert "Content-Type" in error_of(answer)["message"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.api+json"])
def test_forms_of_json_are_json(http, kind):
    body = json.dumps({"model": "toy", "messages": HELLO}).encode()
    assert http.post(CHAT, content=body, headers={"content-type": kind}).status_code == 200


def test_a_packed_body_is_refused(http):
    answer = http.post(CHAT, content=b"x", headers={**JSON, "content-encoding": "gzip"})
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_content_encoding")


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused_whether_it_is_declared_or_not(serve, generator, declared):
    server = serve(generator, max_body=1000)
    body = json.dumps({"model": "toy", "messages": [{"role": "user", "content": "x" * 1000}]}).encode()
    with httpx.Client(base_url=server.url) as http:
        answer = http.post(CHAT, content=body if declared else iter([body]), headers=JSON)
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "request_too_large"
        assert http.get("/health").status_code == 200
    assert generator.requests == []


MESSAGE = {"role": "user", "content": "hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}

WRONG = [
    ({"model": None}, "model", "invalid_type"),
    ({"model": 7}, "model", "invalid_type"),
    ({"messages": None}, "messages", "invalid_type"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [MESSAGE, {"role": "user", "content": 7}]}, "messages[1].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type", "unsupported_content_type"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type", None),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", None),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]},
        "messages[0].tool_calls",
        "unsupported_parameter",
    ),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "0.5"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"top_p": 1.1}, "top_p", "invalid_value"),
    ({"top_p": -1}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"top_k": 1.5}, "top_k", "invalid_type"),
    ({"min_p": 2}, "min_p", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"seed": 1.5}, "seed", "invalid_type"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"seed": 10**400}, "seed", None),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 129}, "n", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": "9"}, "max_completion_tokens", "invalid_type"),
    ({"max_tokens": 1000}, "messages", "context_length_exceeded"),
    ({"max_completion_tokens": 1000}, "messages", "context_length_exceeded"),
    ({"stop": 7}, "stop", "invalid_type"),
    ({"stop": [7]}, "stop[0]", "invalid_type"),
    ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
    ({"stop": "x" * 1025}, "stop[0]", "invalid_value"),
    ({"stop": ["x"] * 17}, "stop", "invalid_value"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"300": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
    ({"logit_bias": {"1": "x"}}, "logit_bias.1", "invalid_type"),
    ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
    ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias", "invalid_value"),
    ({"logprobs": 1}, "logprobs", "invalid_type"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
    ({"stream": True, "stream_options": []}, "stream_options", "invalid_type"),
]


@pytest.mark.parametrize(("fields", "param", "code"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_refused_by_name(http, generator, fields, param, code):
    answer = http.post(CHAT, json={"model": "toy", "messages": HELLO, **fields})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert code in (None, error["code"])
    assert generator.requests == []


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(http, missing):
    body = {"model": "toy", "messages": HELLO}
    del body[missing]
    answer = http.post(CHAT, json=body)
    assert answer.status_code == 400
    assert (error_of(answer)["param"], error_of(answer)["code"]) == (missing, "missing_required_parameter")


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"functions": [{"name": "f"}]},
        {"function_call": {"name": "f"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "x"}},
        {"web_search_options": {}},
        {"reasoning_effort": "high"},
        {"verbosity": "low"},
        {"guided_json": {}},
        {"grammar": "root ::= x"},
        {"min_tokens": 5},
        {"continue_final_message": True},
        {"repeat_penalty": 1.1},
        {"chat_template_kwargs": {"enable_thinking": True}},
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_field_that_would_change_the_answer_is_never_ignored(http, generator, fields, stream):
    answer = http.post(CHAT, json={"model": "toy", "messages": HELLO, "stream": stream, **fields})
    assert answer.status_code == 400
    assert (error_of(answer)["param"], error_of(answer)["code"]) == (*fields, "unsupported_parameter")
    assert generator.requests == []


@pytest.mark.parametrize("path", ["/v1", "/v1/embeddings", "/v1/chat", "/v1/chat/completions/", "/..%2f", "/%00"])
def test_an_unknown_path_is_404_in_the_same_shape(http, path):
    answer = http.post(path, json={})
    assert (answer.status_code, error_of(answer)["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("DELETE", "/v1/models/toy"), ("PUT", "/v1/completions")])
def test_a_wrong_method_is_405_in_the_same_shape(http, method, path):
    answer = http.request(method, path)
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"]


def test_a_model_without_a_template_refuses_a_chat(serve, connect):
    with connect(serve(FakeGenerator(has_chat_template=False))) as client:
        with pytest.raises(openai.BadRequestError, match="chat template") as refused:
            ask(client)
        assert refused.value.param == "messages"


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_429_with_a_time_to_wait(client, generator, stream):
    generator.refusal = Overloaded("64 requests are waiting", retry_after_s=2.2)
    with pytest.raises(openai.RateLimitError, match="64 requests") as refused:
        ask(client, stream=stream)
    assert refused.value.response.headers["retry-after"] == "3"
    assert refused.value.code == "queue_full"


@pytest.mark.parametrize("stream", [False, True])
def test_no_pipeline_is_503(client, generator, stream):
    generator.refusal = PipelineLost("worker b was lost")
    with pytest.raises(openai.InternalServerError, match="worker b") as refused:
        ask(client, stream=stream)
    assert (refused.value.status_code, refused.value.code) == (503, "no_pipeline")


def test_when_one_of_several_sequences_is_refused_the_others_are_cancelled(client, generator):
    submit = generator.submit

    def submit_two(request):
        if len(generator.requests) == 2:
            raise Overloaded("full")
        stream = submit(request)
        stream._ended = False  # as one that still runs
        return stream

    generator.submit = submit_two
    with pytest.raises(openai.RateLimitError):
        ask(client, n=3)
    assert generator.cancelled == [request.request_id for request in generator.requests]


FAILURES = [
    (PipelineLost("worker b was lost"), 503, "no_pipeline"),
    (LinkBroken("reset"), 503, "no_pipeline"),
    (EngineFault("stage 1: not finite"), 500, "engine_fault"),
    (ZeroDivisionError("secret detail"), 500, "internal_error"),
]


@pytest.mark.parametrize(("failure", "status", "code"), FAILURES, ids=lambda value: str(value)[:20])
def test_a_failure_ends_a_whole_answer_with_its_status(serve, connect, failure, status, code):
    server = serve(FakeGenerator([Answer(("Hel",), failure)]))
    with connect(server) as client, pytest.raises(openai.InternalServerError) as refused:
        ask(client)
    assert (refused.value.status_code, refused.value.code) == (status, code)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(("failure", "status", "code"), FAILURES, ids=lambda value: str(value)[:20])
def test_a_failure_before_the_first_token_of_a_stream_is_an_http_error(serve, connect, failure, status, code):
    server = serve(FakeGenerator([Answer((), failure)]))
    with connect(server) as client, pytest.raises(openai.InternalServerError) as refused:
        ask(client, stream=True)
    assert (refused.value.status_code, refused.value.code) == (status, code)


@pytest.mark.parametrize(("failure", "_status", "code"), FAILURES, ids=lambda value: str(value)[:20])
def test_a_failure_in_mid_stream_is_an_event_that_the_client_raises(serve, connect, failure, _status, code):
    server = serve(FakeGenerator([Answer(("Hel", "lo"), failure)]))
    texts = []
    with connect(server) as client, pytest.raises(openai.APIError) as refused:
        texts.extend(chunk.choices[0].delta.content for chunk in ask(client, stream=True))
    assert texts == ["", "Hel", "lo"]
    assert refused.value.code == code
    with httpx.Client(base_url=server.url) as http:
        body = http.post(CHAT, json={"model": "toy", "messages": HELLO, "stream": True}).text
    assert "[DONE]" not in body
    assert "secret" not in body


def test_a_bug_in_a_route_is_an_error_in_the_same_shape(http, generator, caplog):
    def broken() -> bool:
        raise ZeroDivisionError("secret detail")

    generator.ready = broken
    answer = http.get("/ready", headers={"origin": "http://localhost:3000"})
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "secret detail" in caplog.text
