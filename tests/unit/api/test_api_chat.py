"""Chat completions as the official client sees them."""

from __future__ import annotations

import openai
import pytest

from hyperlane.api import HttpServer
from hyperlane.core import FinishReason, GenerationRequest, SamplingParams
from hyperlane.testing.fake_generator import Answer, FakeGenerator

HELLO = [{"role": "user", "content": "hi"}]


def ask(client: openai.OpenAI, **fields: object):
    return client.chat.completions.create(**{"model": "toy", "messages": HELLO, **fields})


def test_an_answer_has_text_reason_usage_and_identity(client):
    answer = ask(client)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "toy"
    assert answer.created > 1_700_000_000
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "Hello, world."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    prompt = len("user: hi\nassistant: ")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        prompt,
        13,
        prompt + 13,
    )
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_ids_differ_and_the_fingerprint_stays(client):
    first, second = ask(client), ask(client)
    assert first.id != second.id
    assert first.system_fingerprint == second.system_fingerprint
    assert first.system_fingerprint.startswith("fp_")


def test_a_stream_tells_the_same_as_the_whole_answer(client):
    whole = ask(client)
    chunks = list(ask(client, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].system_fingerprint == whole.system_fingerprint
    assert all(chunk.usage is None for chunk in chunks)


def test_every_delta_of_the_model_is_a_chunk_of_its_own(client):
    texts = [chunk.choices[0].delta.content for chunk in ask(client, stream=True)]
    assert texts == ["", "Hello", ",", " world", ".", None]


def test_usage_comes_in_a_last_chunk_without_choices_when_asked_for(client):
    whole = ask(client)
    *chunks, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_the_asynchronous_client_streams_and_waits(server: HttpServer):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        whole = await client.chat.completions.create(model="toy", messages=HELLO)
        stream = await client.chat.completions.create(model="toy", messages=HELLO, stream=True)
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(texts) == whole.choices[0].message.content


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_ends_the_answer_with_length(client, field):
    answer = ask(client, **{field: 3})
    assert answer.choices[0].message.content == "Hel"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_the_newer_limit_comes_before_the_older(client, generator):
    ask(client, max_tokens=9, max_completion_tokens=3)
    assert generator.requests[-1].max_tokens == 3


def test_without_a_limit_the_context_is_the_limit(client, generator):
    ask(client)
    assert generator.requests[-1].max_tokens is None


def test_without_options_sampling_is_the_apis_default(client, generator):
    ask(client)
    assert generator.requests[-1].sampling == SamplingParams()


def test_every_sampling_option_reaches_the_head(client, generator):
    extra = {"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1}
    ask(
        client,
        temperature=0.7,
        top_p=0.9,
        seed=7,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"65": -100, "66": 5},
        extra_body=extra,
    )
    assert generator.requests[-1].sampling == SamplingParams(
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        seed=7,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.1,
        logit_bias=((65, -100.0), (66, 5.0)),
    )


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"temperature": 0}, SamplingParams(temperature=0.0)),
        ({"temperature": 1e-9}, SamplingParams(temperature=0.0)),
        ({"top_p": 0}, SamplingParams(top_k=1)),
        ({"extra_body": {"top_k": -1}}, SamplingParams(top_k=0)),
        ({"temperature": None, "top_p": None, "seed": None, "stop": None, "n": None}, SamplingParams()),
        ({"seed": -(2**63)}, SamplingParams(seed=-(2**63))),
    ],
)
def test_values_at_the_border_mean_what_they_say(client, generator, fields, sampling):
    ask(client, **fields)
    assert generator.requests[-1].sampling == sampling


@pytest.mark.parametrize(("stop", "stops"), [("END", ("END",)), (["a", "b\n"], ("a", "b\n")), ([], ())])
def test_stop_is_a_text_or_a_list(client, generator, stop, stops):
    ask(client, stop=stop)
    assert generator.requests[-1].stop == stops


def test_ignore_eos_is_passed_on(client, generator):
    ask(client, extra_body={"ignore_eos": True})
    assert generator.requests[-1].ignore_eos is True


def test_roles_contents_and_names_become_the_templates_messages(client, generator):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "three"},
        {"role": "tool", "tool_call_id": "x", "content": "four"},
    ]
    ask(client, messages=messages)
    prompt = bytes(generator.requests[-1].prompt).decode()
    assert prompt == "system: be brief\nuser: one\ntwo\nassistant: three\ntool: four\nassistant: "


def test_a_trailing_assistant_message_is_a_finished_turn(client, generator):
    ask(client, messages=[*HELLO, {"role": "assistant", "content": "So"}])
    assert bytes(generator.requests[-1].prompt).decode().endswith("assistant: So\nassistant: ")


def test_a_long_conversation_is_encoded_all_the_same(client, generator):
    with pytest.raises(openai.BadRequestError, match="no room for an answer") as refused:
        ask(client, messages=[{"role": "user", "content": "x" * 10_000}])
    assert refused.value.code == "context_length_exceeded"


def test_fields_that_do_not_change_the_answer_are_ignored(client, generator):
    ask(
        client,
        user="ann",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        parallel_tool_calls=False,
        prediction={"type": "content", "content": "x"},
        extra_body={"no_such_field": [1, 2], "num_ctx": 4096},
    )
    assert len(generator.requests) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"extra_body": {"reasoning_effort": None, "verbosity": "medium"}},
    ],
)
def test_neutral_values_of_unsupported_fields_are_accepted(client, fields):
    assert ask(client, **fields).choices[0].message.content


def test_log_probabilities_have_the_chat_form(client):
    choice = ask(client, logprobs=True, top_logprobs=2, max_tokens=2).choices[0]
    first = choice.logprobs.content[0]
    assert (first.token, first.bytes, first.logprob) == ("H", [72], -0.5)
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("H", -0.5), ("I", -1.5)]
    assert [entry.token for entry in choice.logprobs.content] == ["H", "e"]


def test_log_probabilities_without_alternatives_have_an_empty_list(client):
    assert ask(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_streamed_log_probabilities_are_those_of_the_whole_answer(client):
    whole = ask(client, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    chunks = ask(client, logprobs=True, top_logprobs=1, stream=True)
    streamed = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert streamed == whole


def test_text_outside_ascii_arrives_as_it_is(serve, connect):
    text = 'Grüße, 世界 🌍 "quoted" \\ \n\t\x00\u2028'
    server = serve(FakeGenerator([Answer((text[:8], text[8:]))]))
    with connect(server) as client:
        assert ask(client).choices[0].message.content == text
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, stream=True))
    assert streamed == text


class TestSeveralChoices:
    @pytest.fixture
    def generator(self) -> FakeGenerator:
        def answer(request: GenerationRequest) -> Answer:
            choice = int(request.request_id.rpartition("-")[2])
            return Answer((f"choice {choice}", "!" * choice))

        return FakeGenerator(answer)

    def test_whole_answers_are_in_order_of_their_index(self, client):
        answer = ask(client, n=3)
        assert [(choice.index, choice.message.content) for choice in answer.choices] == [
            (0, "choice 0"),
            (1, "choice 1!"),
            (2, "choice 2!!"),
        ]

    def test_streams_are_told_apart_by_their_index(self, client):
        texts, reasons = ["", "", ""], [None, None, None]
        for chunk in ask(client, n=3, stream=True):
            choice = chunk.choices[0]
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        assert texts == ["choice 0", "choice 1!", "choice 2!!"]
        assert reasons == ["stop"] * 3

    def test_usage_counts_the_prompt_once_and_every_answer(self, client):
        one, three = ask(client).usage, ask(client, n=3).usage
        assert three.prompt_tokens == one.prompt_tokens
        assert three.completion_tokens == len("choice 0" + "choice 1!" + "choice 2!!")

    def test_seeds_are_derived_from_the_requests_own(self, client, generator):
        ask(client, n=3, seed=7)
        seeds = [request.sampling.seed for request in generator.requests]
        ask(client, n=3, seed=7)
        again = [request.sampling.seed for request in generator.requests[3:]]
        ask(client, n=3, seed=8)
        other = [request.sampling.seed for request in generator.requests[6:]]
        assert seeds[0] == 7
        assert again == seeds
        assert len({*seeds, *other}) == 6

    def test_without_a_seed_every_choice_draws_its_own(self, client, generator):
        ask(client, n=2)
        assert [request.sampling.seed for request in generator.requests] == [None, None]


def test_an_empty_answer_is_an_empty_text(serve, connect):
    server = serve(FakeGenerator([Answer((), FinishReason.STOP)]))
    with connect(server) as client:
        answer = ask(client)
        chunks = list(ask(client, stream=True))
    assert answer.choices[0].message.content == ""
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, "stop"]
