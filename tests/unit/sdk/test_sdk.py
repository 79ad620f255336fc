from __future__ import annotations

import dataclasses
import gc
import threading

import pytest

import hyperlane
from hyperlane.answer import Answer as TextAnswer
from hyperlane.core import (
    ChatMessage,
    Finished,
    FinishReason,
    GenerationRequest,
    RequestTimings,
    SamplingParams,
    Usage,
)
from hyperlane.errors import ConfigError, InvalidRequest, PipelineLost
from hyperlane.sdk import AutoDistributedModel, sampling_params
from hyperlane.testing.fake_generator import Answer, FakeGenerator
from hyperlane.testing.tiny_models import write_tiny_model


class FakeServing:
    def __init__(self, service: FakeGenerator) -> None:
        self.service = service
        self.plan = service.status().plan
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def service() -> FakeGenerator:
    return FakeGenerator([Answer(("Blue", "", " light", " scatters."))])


@pytest.fixture
def model(service) -> AutoDistributedModel:
    return AutoDistributedModel(FakeServing(service))


def test_the_package_offers_the_model_class_on_first_use():
    assert hyperlane.AutoDistributedModel is AutoDistributedModel
    with pytest.raises(AttributeError, match="nonsense"):
        _ = hyperlane.nonsense


@pytest.mark.parametrize(
    ("devices", "meant"),
    [(None, ()), ("all", ("all",)), ([0, 2], ("0", "2")), (["cuda:1", "cpu", "cpu"], ("cuda:1", "cpu", "cpu"))],
)
def test_devices_are_those_of_the_command_line(devices, meant, service, monkeypatch):
    asked = []
    monkeypatch.setattr("hyperlane.node.start_serving", lambda config, *_, **__: asked.append(config) or service)
    AutoDistributedModel.from_pretrained("smollm2-135m", devices=devices)
    assert [config.devices for config in asked] == [meant]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": ["cuda:first"]}, "devices"),
        ({"devices": ["cpu", "cpu"], "local_workers": 2}, "--devices is a worker for each device"),
    ],
)
def test_devices_that_mean_nothing_or_too_much_are_refused(settings, message, tmp_path):
    model = write_tiny_model(tmp_path / "tiny.gguf")
    with pytest.raises(ConfigError, match=message):
        AutoDistributedModel.from_pretrained(str(model), **settings)


def test_generate_returns_a_string_with_usage_and_timings(model):
    answer = model.generate("Why?")
    assert answer == "Blue light scatters."
    assert answer.usage == Usage(len("Why?"), len("Blue light scatters."))
    assert answer.finish_reason is FinishReason.STOP
    assert answer.timings == RequestTimings(0.0, 0.0, 0.0)


@pytest.mark.parametrize(("tokens", "decode_s", "rate"), [(11, 2.0, 5.0), (1, 0.0, 0.0), (0, 0.0, 0.0)])
def test_tokens_per_second_count_those_after_the_first(tokens, decode_s, rate):
    finished = Finished(FinishReason.STOP, Usage(1, tokens), RequestTimings(0.0, 0.5, decode_s))
    assert TextAnswer("", finished).tokens_per_s == rate


def test_stream_yields_pieces_that_are_never_empty(model):
    stream = model.stream("Why?")
    assert list(stream) == ["Blue", " light", " scatters."]
    assert stream.answer == "Blue light scatters."


def test_an_answer_is_not_there_before_its_stream_has_ended(model):
    stream = model.stream("Why?")
    next(stream)
    with pytest.raises(InvalidRequest, match="to the end"):
        _ = stream.answer
    assert stream.text == "Blue"


def test_options_reach_the_request(model, service):
    model.generate("x", max_tokens=7, stop="\n", temperature=0.0, seed=3, logit_bias={5: -100})
    request: GenerationRequest = service.requests[0]
    assert (request.max_tokens, request.stop) == (7, ("\n",))
    assert request.sampling == SamplingParams(temperature=0.0, seed=3, logit_bias=((5, -100.0),))


def test_a_chat_takes_dicts_and_messages_and_a_list_of_stops(model, service):
    model.chat([{"role": "system", "content": "Be brief."}, ChatMessage("user", "Why?")], stop=["a", "b"])
    assert bytes(service.requests[0].prompt) == b"system: Be brief.\nuser: Why?\nassistant: "
    assert service.requests[0].stop == ("a", "b")


@pytest.mark.parametrize("message", [{"role": "user"}, "Why?", 3])
def test_a_message_without_role_and_content_is_refused(model, message):
    with pytest.raises(InvalidRequest, match="'role' and 'content'"):
        model.chat([message])


def test_an_unknown_option_is_refused_by_its_nearest_name(model):
    with pytest.raises(InvalidRequest, match="did you mean 'temperature'"):
        model.generate("x", temprature=1)


def test_none_leaves_an_option_at_its_default():
    assert sampling_params({"temperature": None, "top_k": 4}) == SamplingParams(top_k=4)


def test_every_sampling_field_is_an_option():
    chosen = {f.name: getattr(SamplingParams(), f.name) for f in dataclasses.fields(SamplingParams)}
    assert sampling_params(chosen) == SamplingParams()


def test_a_failed_request_raises_its_error():
    service = FakeGenerator([Answer(("half",), PipelineLost("worker gone"))])
    stream = AutoDistributedModel(FakeServing(service)).stream("x")
    assert next(stream) == "half"
    with pytest.raises(PipelineLost, match="worker gone"):
        next(stream)


@pytest.mark.parametrize("ending", ["closed", "forgotten"])
def test_closing_or_forgetting_a_stream_cancels_its_request(ending):
    gate = threading.Semaphore(1)
    service = FakeGenerator([Answer(gate=gate)])
    stream = AutoDistributedModel(FakeServing(service)).stream("x")
    assert next(stream) == "Hello"
    if ending == "closed":
        stream.close()
    else:
        del stream
        gc.collect()
    assert service.cancelled == [service.requests[0].request_id]


async def test_the_async_twins_give_the_same_answers(model):
    assert await model.agenerate("Why?") == "Blue light scatters."
    assert await model.achat([{"role": "user", "content": "Why?"}], temperature=0.0) == "Blue light scatters."
    assert [text async for text in model.astream("Why?")] == ["Blue", " light", " scatters."]
    assert [text async for text in model.achat_stream([ChatMessage("user", "x")])] == ["Blue", " light", " scatters."]


def test_the_context_manager_closes_the_serving(service):
    serving = FakeServing(service)
    with AutoDistributedModel(serving) as model:
        assert model.plan.stages[1].layers.last == model.status().plan.model.layers
    assert serving.closed


def test_an_answer_may_be_given_a_time(model, service):
    model.generate("Why?", timeout=2.5)
    model.chat([{"role": "user", "content": "Why?"}], timeout=3)
    list(model.stream("Why?"))
    assert [request.timeout_s for request in service.requests] == [2.5, 3, None]


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "soon"])
def test_a_time_that_is_none_is_refused(model, timeout):
    with pytest.raises(InvalidRequest, match="number of seconds"):
        model.generate("Why?", timeout=timeout)
