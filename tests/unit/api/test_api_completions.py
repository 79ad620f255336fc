"""Completions of plain text as the official client sees them."""

from __future__ import annotations

import openai
import pytest

from hyperlane.core import GenerationRequest
from hyperlane.testing.fake_generator import Answer, FakeGenerator


def ask(client: openai.OpenAI, **fields: object):
    return client.completions.create(**{"model": "toy", "prompt": "Once", **fields})


def test_an_answer_has_text_reason_usage_and_identity(client):
    answer = ask(client)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello, world.", "stop")
    assert answer.choices[0].logprobs is None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 13)
    assert answer.system_fingerprint.startswith("fp_")


def test_a_stream_tells_the_same_as_the_whole_answer(client):
    whole = ask(client)
    *chunks, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert last.choices == []
    assert last.usage == whole.usage


async def test_the_asynchronous_client_streams(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        stream = await client.completions.create(model="toy", prompt="Once", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello, world."


def test_the_limit_is_16_tokens_unless_one_is_given(client, generator):
    ask(client)
    ask(client, max_tokens=3)
    assert [request.max_tokens for request in generator.requests] == [16, 3]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", [(97, 98)]),
        (["a", "b"], [(97,), (98,)]),
        ([97, 98], [(97, 98)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
    ],
)
def test_a_prompt_is_a_text_token_ids_or_a_list_of_them(client, generator, prompt, prompts):
    answer = ask(client, prompt=prompt)
    assert [request.prompt for request in generator.requests] == prompts
    assert [choice.index for choice in answer.choices] == list(range(len(prompts)))
    assert answer.usage.prompt_tokens == sum(map(len, prompts))


def test_several_answers_to_several_prompts_are_in_order(serve, connect):
    def answer(request: GenerationRequest) -> Answer:
        return Answer((bytes(request.prompt).decode() * 2, str(request.sampling.seed == 7)))

    server = serve(FakeGenerator(answer))
    with connect(server) as client:
        whole = ask(client, prompt=["a", "b"], n=2, seed=7)
        texts = [""] * 4
        for chunk in ask(client, prompt=["a", "b"], n=2, seed=7, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    assert [choice.text for choice in whole.choices] == ["aaTrue", "aaFalse", "bbTrue", "bbFalse"]
    assert texts == [choice.text for choice in whole.choices]
    assert whole.usage.prompt_tokens == 2


def test_log_probabilities_have_the_older_form(client):
    logprobs = ask(client, logprobs=2, max_tokens=3).choices[0].logprobs
    assert logprobs.tokens == ["H", "e", "l"]
    assert logprobs.token_logprobs == [-0.5] * 3
    assert logprobs.top_logprobs[0] == {"H": -0.5, "I": -1.5}
    assert logprobs.text_offset == [0, 1, 2]


def test_no_alternatives_are_reported_for_zero(client):
    logprobs = ask(client, logprobs=0).choices[0].logprobs
    assert logprobs.top_logprobs is None
    assert len(logprobs.token_logprobs) == 13


def test_streamed_offsets_go_on_from_chunk_to_chunk(client):
    whole = ask(client, logprobs=1).choices[0].logprobs
    parts = [chunk.choices[0].logprobs for chunk in ask(client, logprobs=1, stream=True)]
    assert [offset for part in parts if part for offset in part.text_offset] == whole.text_offset
    assert [token for part in parts if part for token in part.tokens] == whole.tokens


def test_offsets_count_characters_and_bytes_that_are_no_text_are_named(serve, connect):
    server = serve(FakeGenerator([Answer(("aé", "b"))]))
    with connect(server) as client:
        logprobs = ask(client, logprobs=1).choices[0].logprobs
    assert logprobs.tokens == ["a", "bytes:\\xc3", "bytes:\\xa9", "b"]
    assert logprobs.text_offset == [0, 1, 1, 2]


def test_best_of_may_equal_n(client):
    assert len(ask(client, n=2, best_of=2).choices) == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"best_of": 2}, "best_of"), ({"echo": True}, "echo"), ({"suffix": "end"}, "suffix")],
)
def test_what_is_not_supported_is_refused_by_name(client, generator, fields, param):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **fields)
    assert (refused.value.param, refused.value.code) == (param, "unsupported_parameter")
    assert generator.requests == []


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": []}, "prompt", "invalid_type"),
        ({"prompt": [1, "a"]}, "prompt", "invalid_type"),
        ({"prompt": [[1], []]}, "prompt", "invalid_type"),
        ({"prompt": [True]}, "prompt", "invalid_type"),
        ({"prompt": 7}, "prompt", "invalid_type"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": [257]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": "x" * 600}, "prompt", "context_length_exceeded"),
        ({"prompt": ["a"] * 65, "n": 2}, "n", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ],
)
def test_a_wrong_field_is_refused_by_name(client, generator, fields, param, code):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **fields)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert generator.cancelled == [request.request_id for request in generator.requests]
