"""The scripted generator keeps the promises of `core.TextGenerator`."""

import threading

import pytest

from hyperlane.core import Failed, Finished, FinishReason, GenerationRequest, SamplingParams, TextGenerator
from hyperlane.errors import ContextLengthExceeded, Overloaded, PipelineLost
from hyperlane.testing.fake_generator import Answer, FakeGenerator


def request(**fields) -> GenerationRequest:
    return GenerationRequest(**({"request_id": "r", "prompt": (1, 2)} | fields))


def told(stream):
    *deltas, last = stream
    return "".join(delta.text for delta in deltas), last


def test_answers_come_in_order_and_start_over():
    generator: TextGenerator = FakeGenerator([Answer(("a", "b")), Answer(("c",), PipelineLost("gone"))])
    text, last = told(generator.submit(request()))
    assert (text, last.reason, last.usage.completion_tokens) == ("ab", FinishReason.STOP, 2)
    text, last = told(generator.submit(request()))
    assert text == "c"
    assert isinstance(last, Failed)
    assert told(generator.submit(request()))[0] == "ab"


def test_max_tokens_cuts_the_answer():
    text, last = told(FakeGenerator([Answer(("abc", "def"))]).submit(request(max_tokens=4)))
    assert (text, last.reason, last.usage.completion_tokens) == ("abcd", FinishReason.LENGTH, 4)


def test_a_gate_lets_out_one_event_at_a_time_and_cancel_ends_the_wait():
    gate = threading.Semaphore(0)
    generator = FakeGenerator([Answer(("a", "b"), gate=gate)])
    stream = generator.submit(request())
    gate.release()
    assert next(stream).text == "a"
    stream.cancel()
    last = next(stream)
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.CANCELLED
    assert generator.cancelled == ["r"]


def test_refusals_and_bad_requests_are_raised_at_once():
    generator = FakeGenerator()
    with pytest.raises(ContextLengthExceeded):
        generator.submit(request(max_tokens=10_000))
    generator.refusal = Overloaded("full", retry_after_s=2.0)
    with pytest.raises(Overloaded):
        generator.submit(request())


def test_logprobs_come_with_as_many_alternatives_as_asked():
    stream = FakeGenerator().submit(request(sampling=SamplingParams(logprobs=3)))
    delta = next(stream)
    assert [len(choice.top) for choice in delta.logprobs] == [3] * len(delta.tokens)
    assert delta.logprobs[0].chosen.text == b"H"
