"""Several pipelines of one model as one head: requests go where they are best served, and on where theirs is lost."""

from __future__ import annotations

import itertools
import threading
from contextlib import ExitStack

import pytest

from hyperlane.core import Finished, FinishReason, GenerationRequest, SamplingParams, TextDelta
from hyperlane.errors import EngineFault, Overloaded
from hyperlane.head.head import Head
from hyperlane.head.options import HeadOptions
from hyperlane.head.replicas import ReplicaSet
from hyperlane.testing.byte_tokenizer import ByteTokenizer
from hyperlane.testing.engine_ring import engine_ring
from hyperlane.testing.fake_engine import FakeCost, FakeFaults
from hyperlane.testing.picky_engine import PickyEngine
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs

FACTS = toy_facts()
SLOTS = 4
PATIENT = HeadOptions(max_step_tokens=16, prompt_chunk=8, recovery_timeout_s=60.0)
GREEDY = SamplingParams(temperature=0.0)
ASKED = (
    (b"greedy", GREEDY),
    (b"a longer prompt of several chunks that is seeded", SamplingParams(seed=3)),
    (b"hot: whole logits are asked for", SamplingParams(seed=4, temperature=1.8)),
    (b"penalties", SamplingParams(seed=6, presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.2)),
    (b"logprobs", SamplingParams(temperature=0.0, logprobs=2)),
    (b"one more than there are slots on a replica", SamplingParams(seed=7)),
)


class Replicas:
    """Two heads under one roof; pipelines are attached by hand."""

    def __init__(self, options: HeadOptions = PATIENT, count: int = 2) -> None:
        ids = itertools.count()
        self.losses: list[tuple[int, Exception]] = []
        self.told = threading.Event()
        self.heads = [
            Head(FACTS, ByteTokenizer(), options, on_lost=self._lost(number), ids=ids) for number in range(count)
        ]
        self.all = ReplicaSet(self.heads)
        self._epoch = 0
        self._parts = ExitStack()

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_: object) -> None:
        self.all.close()
        self._parts.close()

    def _lost(self, number: int):
        def lost(cause: Exception) -> None:
            self.losses.append((number, cause))
            self.told.set()

        return lost

    def attach(self, number: int, raises_at: int | None = None, stages: int = 2, **engine) -> None:
        self._epoch += 1
        plan = toy_plan(FACTS, stages, slots=SLOTS)
        specs = toy_specs(plan, self._epoch, max_step_tokens=16)
        faults = [FakeFaults(raises_at=raises_at if spec.is_last else None) for spec in specs]
        engines = [PickyEngine(spec, faults=fault, **engine) for spec, fault in zip(specs, faults, strict=True)]
        self.heads[number].attach(self._parts.enter_context(engine_ring(specs, engines)), plan, self._epoch)

    def submit(self, prompt: bytes, params: SamplingParams = GREEDY, count: int = 30):
        return self.all.submit(GenerationRequest("r", tuple(prompt), params, max_tokens=count, ignore_eos=True))

    def answers(self) -> list[tuple]:
        return [told(stream) for stream in [self.submit(prompt, params) for prompt, params in ASKED]]

    def admitted(self) -> list[int]:
        return [head.status().requests_admitted for head in self.heads]


def told(stream) -> tuple:
    *deltas, last = stream
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    assert isinstance(last, Finished), last
    logprobs = [choice for delta in deltas for choice in delta.logprobs]
    return [token for delta in deltas for token in delta.tokens], logprobs, last.reason, last.usage.completion_tokens


@pytest.fixture(scope="module")
def undisturbed() -> list[tuple]:
    with Replicas(count=1) as one:
        one.attach(0)
        return one.answers()


def test_requests_are_shared_out_among_the_pipelines(undisturbed):
    gate = threading.Event()
    with Replicas() as replicas:
        replicas.attach(0, cost=FakeCost(1.0), wait=lambda _: gate.wait(60))
        replicas.attach(1, stages=3, cost=FakeCost(1.0), wait=lambda _: gate.wait(60))
        streams = [replicas.submit(prompt, params) for prompt, params in ASKED]
        gate.set()
        assert [told(stream) for stream in streams] == undisturbed
        status = replicas.all.status()
        assert replicas.admitted() == [3, 3]
        assert (status.requests_admitted, status.requests_ended, status.slots) == (6, 6, 2 * SLOTS)
        assert [len(replica.plan.stages) for replica in status.replicas] == [2, 3]
        assert status.completion_tokens == 30 * len(ASKED)


@pytest.mark.parametrize("step", range(0, 40, 3))
def test_a_pipeline_that_dies_in_any_step_hands_its_requests_over_and_no_answer_changes(undisturbed, step):
    with Replicas() as replicas:
        replicas.attach(0, raises_at=step)
        replicas.attach(1, stages=3)
        assert replicas.answers() == undisturbed
        assert [number for number, _ in replicas.losses] == [0]
        assert isinstance(replicas.losses[0][1], EngineFault)
        status = replicas.all.status()
        assert (status.requests_admitted, status.requests_ended) == (len(ASKED), len(ASKED))
        assert (status.losses, status.active, status.queued, status.ready) == (1, 0, 0, True)
        assert not replicas.heads[0].ready()


def test_a_pipeline_that_comes_back_takes_new_requests(undisturbed):
    with Replicas() as replicas:
        replicas.attach(0, raises_at=0)
        replicas.attach(1)
        assert told(replicas.submit(*ASKED[0])) == undisturbed[0]
        assert replicas.told.wait(30)
        before = replicas.admitted()
        assert told(replicas.submit(*ASKED[1])) == undisturbed[1]
        assert replicas.admitted() == [before[0], before[1] + 1]
        replicas.attach(0)
        assert replicas.answers() == undisturbed
        assert replicas.admitted()[0] > before[0]


def test_requests_wait_for_whichever_pipeline_comes_first_when_all_are_lost(undisturbed):
    with Replicas() as replicas:
        replicas.attach(0, raises_at=8)
        replicas.attach(1, raises_at=8)
        streams = [replicas.submit(prompt, params) for prompt, params in ASKED]
        while len(replicas.losses) < 2:
            assert replicas.told.wait(30)
            replicas.told.clear()
        assert not replicas.all.ready()
        replicas.attach(1)
        assert [told(stream) for stream in streams] == undisturbed
        assert replicas.all.status().requests_ended == len(ASKED)


def test_nobody_queues_behind_others_while_its_own_pipeline_may_come_back(undisturbed):
    """The other one has no free slot: who was lost waits where it is, and the pipeline that comes back goes on."""
    gate = threading.Event()
    with Replicas() as replicas:
        replicas.attach(1, cost=FakeCost(1.0), wait=lambda _: gate.wait(60))
        busy = [replicas.submit(b"busy") for _ in range(SLOTS)]
        replicas.attach(0, raises_at=5)
        stream = replicas.submit(*ASKED[1])
        assert replicas.told.wait(30)
        replicas.attach(0)
        assert told(stream) == undisturbed[1]
        assert replicas.heads[0].status().requests_ended == 1
        gate.set()
        assert len({tuple(told(one)[0]) for one in busy}) == 1


def test_a_reader_that_goes_away_ends_its_request_wherever_that_is():
    gate = threading.Event()
    with Replicas() as replicas:
        replicas.attach(0, raises_at=5)
        replicas.attach(1, cost=FakeCost(1.0), wait=lambda _: gate.wait(60))
        stream = replicas.submit(b"goes away", count=200)
        assert replicas.told.wait(30)
        stream.cancel()
        gate.set()
        *_, last = stream
        assert last.reason is FinishReason.CANCELLED
        status = replicas.all.status()
        assert (status.endings.cancelled, status.active, status.queued) == (1, 0, 0)


def test_a_conversation_goes_on_where_its_beginning_is_held():
    with Replicas() as replicas:
        replicas.attach(0)
        replicas.attach(1)
        turns = [
            b"first conversation, with a beginning of its own. " * 2,
            b"another one, which has another beginning. " * 2,
        ]
        for turn in turns:
            told(replicas.submit(turn, count=4))
        for turn in (*turns, *turns):
            told(replicas.submit(turn + b"and a next question", count=4))
        statuses = replicas.all.status().replicas
        assert sum(status.requests_continued for status in statuses) == 4
        assert replicas.admitted() in ([6, 0], [3, 3])


def test_the_queues_of_all_pipelines_are_full_before_a_request_is_refused():
    gate = threading.Event()
    with Replicas(HeadOptions(max_step_tokens=16, queue=1, recovery_timeout_s=60.0)) as replicas:
        for number in range(2):
            replicas.attach(number, cost=FakeCost(1.0), wait=lambda _: gate.wait(60))
        streams = [replicas.submit(b"x", count=2) for _ in range(2 * (SLOTS + 1))]
        with pytest.raises(Overloaded, match="wait for one of"):
            replicas.submit(b"x", count=2)
        assert replicas.all.status().requests_refused == 1
        gate.set()
        for stream in streams:
            told(stream)
