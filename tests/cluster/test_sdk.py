"""The Python API over real worker processes and a tiny model."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from hyperlane import AutoDistributedModel
from hyperlane.core import FinishReason, Precision
from hyperlane.errors import ContextLengthExceeded, InvalidRequest, UnknownModel, WorkerUnreachable

GREEDY = {"temperature": 0.0, "max_tokens": 6}


@pytest.fixture(scope="module")
def model(tiny_model):
    with AutoDistributedModel.from_pretrained(tiny_model, local_workers=2, threads=1) as model:
        yield model


def test_the_plan_puts_half_of_the_layers_on_each_worker(model):
    assert [str(stage.layers) for stage in model.plan.stages] == ["0-1", "2-3"]


def test_packed_links_carry_a_fraction_of_the_bytes(model, tiny_model):
    model.generate("the ring", **GREEDY)
    with AutoDistributedModel.from_pretrained(tiny_model, local_workers=2, threads=1, wire="int4") as packed:
        assert packed.plan.precisions == (Precision.RAW, Precision.INT4, Precision.RAW)
        assert packed.generate("the ring", **GREEDY) == packed.generate("the ring", **GREEDY)
        raw, int4 = (one.status().stages[0].sent_bytes_per_token for one in (model, packed))
        values = packed.plan.model.hidden  # what else a frame has differs a little with what it holds
        assert raw - int4 == pytest.approx((4 - 38 / 64) * values, rel=0.1)


def test_a_stream_and_a_whole_answer_are_the_same_text(model):
    stream = model.stream("the ring", **GREEDY)
    text = "".join(stream)
    whole = model.generate("the ring", **GREEDY)
    assert text == whole == stream.answer
    assert whole.usage.completion_tokens == 6
    assert whole.finish_reason is FinishReason.LENGTH
    assert whole.timings.ttft_s > 0


def test_a_seed_repeats_an_answer(model):
    first, second = (model.generate("the", temperature=1.0, seed=5, max_tokens=12) for _ in range(2))
    assert first == second


def test_threads_and_coroutines_share_a_model(model):
    prompts = [f"the ring {number}" for number in range(6)]
    alone = [model.generate(prompt, **GREEDY) for prompt in prompts]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda prompt: model.generate(prompt, **GREEDY), prompts)) == alone

    async def all_at_once() -> list[str]:
        return await asyncio.gather(*(model.agenerate(prompt, **GREEDY) for prompt in prompts))

    assert asyncio.run(all_at_once()) == alone


def test_a_chat_is_answered_through_the_models_template(model):
    answer = model.chat([{"role": "user", "content": "the ring"}], **GREEDY)
    assert answer.usage.prompt_tokens > len(model.service.encode("the ring"))


def test_a_closed_stream_frees_its_slot(model):
    for _ in range(12):  # three times the slots
        stream = model.stream("the", temperature=1.0)
        next(stream)
        stream.close()
    assert model.generate("the", **GREEDY).usage.completion_tokens == 6


def test_the_status_counts_requests_and_measures_links(model):
    model.generate("the", **GREEDY)
    status = model.status()
    assert status.ready
    assert status.requests_admitted >= 1
    assert all(stage.sent_bytes_per_token > 0 for stage in status.stages)
    assert status.sent_bytes_per_token > 0


def test_a_prompt_longer_than_the_context_is_refused_at_once(model):
    with pytest.raises(ContextLengthExceeded):
        model.generate("the " * 1000)


@pytest.mark.parametrize("option", [{"temperature": -1.0}, {"top_p": 2.0}, {"max_tokens": 0}, {"topp": 1}])
def test_a_wrong_option_is_refused_at_once(model, option):
    with pytest.raises(InvalidRequest):
        model.generate("the", **option)


def test_each_of_the_devices_that_are_asked_for_is_a_worker(model, tiny_model):
    with AutoDistributedModel.from_pretrained(tiny_model, devices=["cpu", "cpu"], threads=1) as other:
        assert [stage.worker.device for stage in other.plan.stages] == ["cpu", "cpu"]
        assert len({stage.worker.control for stage in other.plan.stages}) == 2
        assert other.generate("the ring", **GREEDY) == model.generate("the ring", **GREEDY)


def test_an_unknown_model_starts_nothing():
    before = psutil.Process().children(recursive=True)
    with pytest.raises(UnknownModel):
        AutoDistributedModel.from_pretrained("no-such-model", local_workers=2)
    assert psutil.Process().children(recursive=True) == before


def test_a_worker_that_is_not_there_is_named_and_local_ones_are_ended(tiny_model):
    before = psutil.Process().children(recursive=True)
    with pytest.raises(WorkerUnreachable, match=r"127\.0\.0\.1:9\b"):
        AutoDistributedModel.from_pretrained(
            tiny_model, local_workers=1, workers=["127.0.0.1:9"], connect_timeout_s=1.0, threads=1
        )
    assert psutil.Process().children(recursive=True) == before


def test_closing_ends_the_workers_that_were_started(tiny_model):
    before = set(psutil.Process().children(recursive=True))
    model = AutoDistributedModel.from_pretrained(tiny_model, threads=1)
    started = set(psutil.Process().children(recursive=True)) - before
    assert len(started) == 1
    model.close()
    assert not any(process.is_running() for process in started)
