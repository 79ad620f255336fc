"""A head over a ring of fake engines with real frames: answers, batching, limits, ends and failures."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from hyperlane.core import (
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TextDelta,
    TextGenerator,
)
from hyperlane.errors import EngineFault, Overloaded, PipelineLost
from hyperlane.head.head import Head
from hyperlane.head.options import HeadOptions
from hyperlane.head.penalties import History
from hyperlane.head.sampler import pick_whole, uniform
from hyperlane.head.service import HeadService
from hyperlane.testing.byte_tokenizer import EOS, ByteTokenizer
from hyperlane.testing.engine_ring import engine_ring
from hyperlane.testing.fake_engine import FakeCost, FakeEngine, FakeFaults, fake_generate
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs

FACTS = toy_facts()
ENDLESS = toy_facts(context=100_000)
"""A context that no test reaches the end of: its requests go on until they are cancelled."""

GREEDY = SamplingParams(temperature=0.0)


class Gate:
    """A programmed wait that lasts until the test lets steps through: the engines stand still at known places."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Semaphore(0)

    def wait(self, _seconds: float) -> None:
        self.reached.release()
        assert self.open.wait(30)


class Rig:
    """A head and what it is served by."""

    def __init__(self, head: Head, stages: int = 2) -> None:
        self.head = head
        self.plan = toy_plan(head.model, stages, slots=4)
        self.service = HeadService(head, ByteTokenizer())

    @contextmanager
    def pipeline(self, epoch=1, **engine):
        specs = toy_specs(self.plan, epoch, max_step_tokens=self.head.options.max_step_tokens)
        engines = [FakeEngine(spec, **engine) for spec in specs]
        with engine_ring(specs, engines) as ring:
            self.head.attach(ring, self.plan, epoch)
            yield self
            self.head.detach()


@contextmanager
def rig(stages=2, options=None, facts=FACTS, **engine):
    head = Head(facts, ByteTokenizer(), options or HeadOptions(max_step_tokens=16))
    with Rig(head, stages).pipeline(**engine) as running:
        yield running
    head.close()


def request(prompt=b"prompt", count=20, **fields):
    fields = {"sampling": GREEDY, "max_tokens": count, "ignore_eos": True} | fields
    return GenerationRequest("test", tuple(prompt), **fields)


def read(stream):
    """Tokens, text and the last event."""
    *deltas, last = stream
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    return [token for delta in deltas for token in delta.tokens], "".join(delta.text for delta in deltas), last


def prompts(count):
    rng = np.random.default_rng(count)
    return [bytes(rng.integers(0, 256, int(rng.integers(1, 70))).tolist()) for _ in range(count)]


# --- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_many_requests_at_once_get_exactly_the_models_answers(stages):
    asked = prompts(24)
    with rig(stages, HeadOptions(max_step_tokens=16, min_group_rows=1)) as running:
        streams = [running.head.submit(request(prompt, 12 + index)) for index, prompt in enumerate(asked)]
        with ThreadPoolExecutor(len(streams)) as readers:
            answers = list(readers.map(read, streams))
        status = running.head.status()
    for index, (prompt, (tokens, text, last)) in enumerate(zip(asked, answers, strict=True)):
        assert tokens == fake_generate(prompt, 12 + index, FACTS)
        assert text == ByteTokenizer().decode(tokens)
        assert last.reason is FinishReason.LENGTH
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(prompt), 12 + index)
    assert (status.requests_admitted, status.requests_ended, status.active, status.queued) == (24, 24, 0, 0)


def test_a_request_joins_while_others_decode():
    with rig(facts=ENDLESS) as running:
        first = running.head.submit(request(b"first", None))
        assert isinstance(next(first), TextDelta)
        second = read(running.head.submit(request(b"second", 5)))
        assert running.head.status().active == 1
        assert second[0] == fake_generate(b"second", 5, FACTS)
        first.cancel()
        assert read(first)[2].reason is FinishReason.CANCELLED


def sampled(params, seed, prompt, count):
    """The answer by whole logits, position by position."""
    history = History(params, prompt)

    def pick(logits, tokens):
        token = pick_whole(logits, params, history, uniform(seed, len(tokens))).token
        history.add(token)
        return token

    return fake_generate(prompt, count, FACTS, pick)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=11),
        SamplingParams(seed=12, temperature=1.8),
        SamplingParams(seed=13, top_p=0.8, top_k=30, min_p=0.05),
        SamplingParams(seed=14, presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.2),
        SamplingParams(seed=15, logit_bias=((200, 6.0), (99, -100.0))),
        SamplingParams(temperature=0.0, repetition_penalty=1.5),
    ],
)
def test_seeded_answers_are_those_of_the_whole_logits_however_they_are_batched(params):
    prompt = b"sampling"
    with rig() as running:
        streams = [running.head.submit(request(prompt, 60, sampling=params)) for _ in range(5)]
        answers = [read(stream)[0] for stream in streams]
        refetched = running.head.status().logits_refetched
    expected = sampled(params, params.seed or 0, prompt, 60)
    assert answers == [expected] * 5
    assert (refetched > 0) == (params.temperature > 0.0 and params.top_p == 1.0)


def test_unseeded_requests_differ():
    with rig() as running:
        streams = [running.head.submit(request(b"any", 30, sampling=SamplingParams())) for _ in range(2)]
        assert read(streams[0])[0] != read(streams[1])[0]


def test_the_end_token_stops_and_is_not_told_unless_it_is_to_be_ignored():
    prompt = next(bytes([a, b]) for a in range(256) for b in range(256) if _ends_soon(bytes([a, b])))
    expected = fake_generate(prompt, 60, FACTS, _letters_or_end)
    params = SamplingParams(temperature=0.0, logit_bias=((EOS, 4.0),))
    with rig() as running:
        tokens, text, last = read(running.head.submit(request(prompt, 60, sampling=params, ignore_eos=False)))
        assert tokens == expected[: expected.index(EOS)]
        assert text == ByteTokenizer().decode(tokens)
        assert last.reason is FinishReason.STOP
        assert last.usage.completion_tokens == len(tokens) + 1
        assert read(running.head.submit(request(prompt, 60, sampling=params)))[0] == expected


def _letters_or_end(logits, _tokens):
    logits = logits.copy()
    logits[EOS] += np.float32(4.0)
    return int(np.argmax(logits))


def _ends_soon(prompt):
    return EOS in fake_generate(prompt, 60, FACTS, _letters_or_end)[2:]


def test_a_stop_string_across_tokens_ends_the_answer_before_it():
    text = ByteTokenizer().decode(fake_generate(b"stop", 40, FACTS))
    stop = text[10:13]
    with rig() as running:
        tokens, told, last = read(running.head.submit(request(b"stop", 40, stop=("nowhere", stop))))
        assert told == text[: text.index(stop)]
        assert tokens == fake_generate(b"stop", 40, FACTS)[: len(told)]
        assert last.reason is FinishReason.STOP
        wait_for_slots(running)


def test_logprobs_come_with_every_told_token():
    params = SamplingParams(temperature=0.0, logprobs=2)
    with rig() as running:
        *deltas, _ = running.head.submit(request(b"logprobs", 10, sampling=params))
    choices = [choice for delta in deltas for choice in delta.logprobs]
    assert [choice.chosen.token for choice in choices] == fake_generate(b"logprobs", 10, FACTS)
    assert all(choice.top[0] == choice.chosen and len(choice.top) == 2 for choice in choices)
    assert all(choice.chosen.text == bytes([choice.chosen.token]) for choice in choices)


def test_an_answer_without_a_limit_ends_where_the_context_does():
    with rig() as running:
        tokens, _, last = read(running.head.submit(request(b"x" * 490, None)))
        assert len(tokens) == FACTS.context - 490
        assert last.reason is FinishReason.LENGTH


# --- admission ---------------------------------------------------------------------------------------------------


def wait_for_slots(running):
    """A request that gets through proves that the loop has taken in all that came before; then none may be active."""
    read(running.head.submit(request(b"probe", 1)))
    assert running.head.status().active == 0


def test_a_cancelled_request_ends_once_and_its_slot_serves_the_next():
    with rig(facts=ENDLESS) as running:
        streams = [running.head.submit(request(b"endless", None)) for _ in range(4)]
        waiting = running.head.submit(request(b"waits", 3))
        next(streams[2])
        streams[2].cancel()
        streams[2].cancel()
        assert read(streams[2])[2].reason is FinishReason.CANCELLED
        assert read(waiting)[0] == fake_generate(b"waits", 3, FACTS)
        for stream in streams:
            stream.cancel()
        assert [read(streams[index])[2].reason for index in (0, 1, 3)] == [FinishReason.CANCELLED] * 3
        wait_for_slots(running)


def test_a_request_that_is_cancelled_in_the_queue_never_runs():
    gate = Gate()
    with rig(cost=FakeCost(1.0), wait=gate.wait) as running:
        streams = [running.head.submit(request(b"slot", 3)) for _ in range(4)]
        waiting = running.head.submit(request(b"waits", 3))
        waiting.cancel()
        tokens, _, last = read(waiting)
        assert (tokens, last.reason, last.usage.completion_tokens) == ([], FinishReason.CANCELLED, 0)
        gate.open.set()
        assert [read(stream)[0] for stream in streams] == [fake_generate(b"slot", 3, FACTS)] * 4


def test_a_full_queue_refuses_at_once_and_takes_again_when_one_has_ended():
    gate = Gate()
    with rig(options=HeadOptions(queue=2), cost=FakeCost(1.0), wait=gate.wait) as running:
        streams = [running.head.submit(request(count=2)) for _ in range(6)]
        with pytest.raises(Overloaded) as refused:
            running.head.submit(request())
        assert refused.value.retry_after_s >= 1.0
        assert running.head.status().requests_refused == 1
        gate.open.set()
        assert all(isinstance(read(stream)[2], Finished) for stream in streams)
        read(running.head.submit(request(count=1)))


def test_a_slow_reader_stalls_nobody():
    with rig() as running:
        unread = running.head.submit(request(b"unread", 400))
        for _ in range(5):
            read(running.head.submit(request(b"read", 50)))
        assert len(read(unread)[0]) == 400


# --- the service -------------------------------------------------------------------------------------------------


def test_the_service_is_a_text_generator_and_proves_itself():
    head = Head(FACTS, ByteTokenizer(), HeadOptions(max_step_tokens=16))
    service: TextGenerator = HeadService(head, ByteTokenizer())
    assert not service.ready()
    with pytest.raises(PipelineLost):
        service.submit(request())
    with pytest.raises(PipelineLost):
        service.status()
    plan = toy_plan(FACTS)
    specs = toy_specs(plan, max_step_tokens=16)
    with engine_ring(specs, [FakeEngine(spec) for spec in specs]) as ring:
        head.switch(ring, plan, 1)
        assert service.ready()
        assert service.encode("abc") == (97, 98, 99)
        assert service.token_text(97) == b"a"
        assert read(service.submit(request()))[0] == fake_generate(b"prompt", 20, FACTS)
        status = service.status()
        assert status.ready
        assert [stage.plan.index for stage in status.stages] == [0, 1]
        assert status.stages[0].sent_bytes_per_token > 4 * FACTS.hidden
        assert status.ring_us >= status.hop_us > 0.0
        head.close()
    assert not service.ready()


# --- failures ----------------------------------------------------------------------------------------------------


def test_a_stage_fault_ends_every_request_with_an_error_and_a_new_pipeline_goes_on():
    lost = []
    told = threading.Event()
    head = Head(FACTS, ByteTokenizer(), HeadOptions(max_step_tokens=16), on_lost=lambda e: (lost.append(e), told.set()))
    running = Rig(head)
    with running.pipeline(faults=FakeFaults(raises_at=9)):
        streams = [head.submit(request(b"doomed", None)) for _ in range(7)]
        ends = [read(stream)[2] for stream in streams]
        assert told.wait(10)
        assert not head.ready()
        with pytest.raises(PipelineLost):
            head.submit(request())
    assert all(isinstance(end, Failed) and isinstance(end.error, PipelineLost) for end in ends)
    assert "a programmed fault in step 9" in str(ends[0].error)
    assert len({id(end.error) for end in ends}) == 7
    assert len(lost) == 1
    assert isinstance(lost[0], EngineFault)
    status = head.status()
    assert (status.requests_admitted, status.requests_ended, status.queued, status.active) == (7, 7, 0, 0)
    with running.pipeline(epoch=2):
        head.warm_up(30)
        assert head.ready()
        assert read(head.submit(request()))[0] == fake_generate(b"prompt", 20, FACTS)
        assert head.status().epoch == 2
    head.close()


def test_the_next_pipeline_may_be_attached_where_the_loss_is_reported():
    head = Head(FACTS, ByteTokenizer(), HeadOptions(max_step_tokens=16), on_lost=lambda _: attach_next())
    running = Rig(head)
    specs = toy_specs(running.plan, 2, max_step_tokens=16)
    again = threading.Event()
    with engine_ring(specs, [FakeEngine(spec) for spec in specs]) as ring:

        def attach_next():
            head.attach(ring, running.plan, 2)
            again.set()

        with running.pipeline(faults=FakeFaults(raises_at=3)):
            assert isinstance(read(head.submit(request()))[2], Failed)
            assert again.wait(10)
            assert read(head.submit(request()))[0] == fake_generate(b"prompt", 20, FACTS)
        head.close()


def test_a_value_that_is_not_finite_ends_only_the_requests_that_it_touches():
    with rig(stages=1, faults=FakeFaults(nan_at=5)) as running:
        last = read(running.head.submit(request(b"nan", 20)))[2]
        assert isinstance(last, Failed)
        assert isinstance(last.error, EngineFault)
        assert read(running.head.submit(request()))[0] == fake_generate(b"prompt", 20, FACTS)


def test_closing_ends_running_and_waiting_requests():
    gate = Gate()
    with rig(cost=FakeCost(1.0), wait=gate.wait) as running:
        streams = [running.head.submit(request(b"cut off", 50)) for _ in range(6)]
        assert gate.reached.acquire(timeout=10)
        running.head.close()
        ends = [read(stream)[2] for stream in streams]
        assert all(isinstance(end, Failed) and "stopped" in str(end.error) for end in ends)
        with pytest.raises(PipelineLost, match="stopped"):
            running.head.submit(request())
        with pytest.raises(RuntimeError):
            running.head.attach(None, running.plan, 2)
        gate.open.set()


def test_a_bug_in_the_loop_leaves_nobody_waiting(caplog):
    class Broken(ByteTokenizer):
        def token_bytes(self, token):
            raise KeyError(token)

    lost = []
    head = Head(FACTS, Broken(), HeadOptions(max_step_tokens=16), on_lost=lost.append)
    with Rig(head).pipeline():
        streams = [head.submit(request(count=count)) for count in (1, 1, 50, 50, 50, 50, 50)]
        assert all(isinstance(read(stream)[2], Failed) for stream in streams)
    assert isinstance(lost[0], KeyError)
    assert "the head's loop failed" in caplog.text
    assert head.status().requests_ended == 7


def test_a_warm_up_that_does_not_come_back_is_given_up():
    gate = Gate()
    with rig(cost=FakeCost(1.0), wait=gate.wait) as running:
        with pytest.raises(PipelineLost, match=r"within 0\.01 s"):
            running.head.warm_up(0.01)
        assert not running.head.ready()
        gate.open.set()
