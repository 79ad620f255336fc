"""What a head refuses before it queues it, and the service's words for it."""

import pytest

from hyperlane.core import ChatMessage, GenerationRequest, SamplingParams
from hyperlane.errors import ContextLengthExceeded, InvalidRequest
from hyperlane.head.head import Head
from hyperlane.head.service import HeadService
from hyperlane.head.validation import check_request
from hyperlane.testing.byte_tokenizer import ByteTokenizer
from hyperlane.testing.toy import toy_facts

FACTS = toy_facts()


def request(prompt=b"prompt", count=20, **fields):
    return GenerationRequest("test", tuple(prompt), max_tokens=count, **fields)


def test_a_model_without_a_template_has_no_chat():
    service = HeadService(Head(FACTS, ByteTokenizer()), ByteTokenizer())
    assert not service.has_chat_template
    with pytest.raises(InvalidRequest, match="chat template") as error:
        service.encode_chat([ChatMessage("user", "hi")])
    assert error.value.param == "messages"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": b""}, "prompt"),
        ({"prompt": (1, 257)}, "prompt"),
        ({"prompt": (-1,)}, "prompt"),
        ({"count": 0}, "max_tokens"),
        ({"stop": ("",)}, "stop"),
        ({"stop": ("x",) * 17}, "stop"),
        ({"sampling": SamplingParams(temperature=-0.1)}, "temperature"),
        ({"sampling": SamplingParams(temperature=float("nan"))}, "temperature"),
        ({"sampling": SamplingParams(top_p=0.0)}, "top_p"),
        ({"sampling": SamplingParams(top_p=1.1)}, "top_p"),
        ({"sampling": SamplingParams(top_k=-1)}, "top_k"),
        ({"sampling": SamplingParams(min_p=2.0)}, "min_p"),
        ({"sampling": SamplingParams(presence_penalty=3.0)}, "presence_penalty"),
        ({"sampling": SamplingParams(repetition_penalty=0.0)}, "repetition_penalty"),
        ({"sampling": SamplingParams(logprobs=21)}, "top_logprobs"),
        ({"sampling": SamplingParams(logit_bias=((300, 1.0),))}, "logit_bias"),
        ({"sampling": SamplingParams(logit_bias=((3, 101.0),))}, "logit_bias"),
        ({"sampling": SamplingParams(seed=1 << 70)}, "seed"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(fields, param):
    service = HeadService(Head(FACTS, ByteTokenizer()), ByteTokenizer())
    with pytest.raises(InvalidRequest) as error:
        service.submit(request(**fields))
    assert error.value.param == param
    assert error.value.code == "invalid_value"


@pytest.mark.parametrize(("prompt", "count"), [(b"x" * 512, None), (b"x" * 500, 13)])
def test_what_does_not_fit_the_context_is_refused(prompt, count):
    service = HeadService(Head(FACTS, ByteTokenizer()), ByteTokenizer())
    with pytest.raises(ContextLengthExceeded):
        service.submit(request(prompt, count))


def test_every_limit_itself_is_accepted():
    sampling = SamplingParams(
        temperature=100.0,
        top_p=1e-9,
        min_p=1.0,
        top_k=10**9,
        seed=-(1 << 63),
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        repetition_penalty=100.0,
        logit_bias=((0, -100.0), (256, 100.0)),
        logprobs=20,
    )
    check_request(request(b"x" * 500, 12, sampling=sampling, stop=("x" * 1024,) * 16), FACTS.vocab, FACTS.context)
