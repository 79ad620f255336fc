"""A pipeline is lost, or let go, in the middle of answers: the next one computes them again and nobody sees it.

The engines' arithmetic is another one for a row of one token than for a row of several, as attention's is: so an answer
is the undisturbed one only if every position is computed again as it was the first time.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from hyperlane.core import Failed, Finished, FinishReason, GenerationRequest, SamplingParams
from hyperlane.errors import DeadlineExceeded, EngineFault, PipelineLost, StepOverdue
from hyperlane.head.gap import MAX_REPLAYS
from hyperlane.head.head import Head
from hyperlane.head.options import HeadOptions
from hyperlane.testing.byte_tokenizer import ByteTokenizer
from hyperlane.testing.engine_ring import engine_ring
from hyperlane.testing.fake_engine import FakeCost, FakeFaults
from hyperlane.testing.mixed_requests import ASKED, FACTS, GREEDY, PATIENT, told
from hyperlane.testing.picky_engine import PickyEngine
from hyperlane.testing.toy import toy_plan, toy_specs


class Cluster:
    """Pipelines that wait to be attached, one after the other; each faults in the step that is programmed for it."""

    def __init__(self, options: HeadOptions = PATIENT) -> None:
        self.head = Head(FACTS, ByteTokenizer(), options, on_lost=self._lost)
        self.losses: list[Exception] = []
        self.told = threading.Event()
        self.next_faults: list[int | None] = []
        self.around = lambda ring: ring
        self.epoch = 0
        self._parts = ExitStack()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.head.close()
        self._parts.close()

    def attach(self, raises_at: int | None = None, stages: int = 2, **engine) -> None:
        self.epoch += 1
        plan = toy_plan(FACTS, stages, slots=4)
        specs = toy_specs(plan, self.epoch, max_step_tokens=16)
        faults = [FakeFaults(raises_at=raises_at if spec.is_last else None) for spec in specs]
        engines = [PickyEngine(spec, faults=fault, **engine) for spec, fault in zip(specs, faults, strict=True)]
        ring = self._parts.enter_context(engine_ring(specs, engines))
        self.head.attach(self.around(ring), plan, self.epoch)

    def _lost(self, cause: Exception) -> None:
        self.losses.append(cause)
        if self.next_faults:
            self.attach(self.next_faults.pop(0), stages=1 + self.epoch % 3)
        self.told.set()

    def submit(self, prompt: bytes, params: SamplingParams = GREEDY, count: int | None = 30, **fields):
        return self.head.submit(
            GenerationRequest("r", tuple(prompt), params, max_tokens=count, ignore_eos=True, **fields)
        )

    def answers(self) -> list[tuple]:
        """All that the readers of the requests are told, but times; piece by piece or together is the same."""
        return [told(stream) for stream in [self.submit(prompt, params) for prompt, params in ASKED]]


@pytest.fixture(scope="module")
def undisturbed() -> list[tuple]:
    with Cluster() as cluster:
        cluster.attach()
        return cluster.answers()


@pytest.mark.parametrize("first", range(0, 60, 3))
def test_a_pipeline_that_is_lost_in_any_step_changes_no_answer(undisturbed, first):
    with Cluster() as cluster:
        cluster.next_faults = [first // 2, first + 7, None]
        cluster.attach(raises_at=first)
        assert cluster.answers() == undisturbed
        assert len(cluster.losses) == 3
        status = cluster.head.status()
    assert all(isinstance(cause, EngineFault) for cause in cluster.losses)
    assert (status.requests_admitted, status.requests_ended) == (len(ASKED), len(ASKED))
    assert (status.losses, status.active, status.queued) == (3, 0, 0)
    assert status.completion_tokens == 30 * len(ASKED)


def test_whole_logits_are_asked_for_in_these_tests():
    with Cluster() as cluster:
        cluster.attach()
        cluster.answers()
        assert cluster.head.status().logits_refetched > 10


def test_another_pipeline_takes_over_between_two_steps(undisturbed):
    with Cluster() as cluster:
        cluster.attach(stages=2)
        streams = [cluster.submit(prompt, params) for prompt, params in ASKED]
        begun = []
        for stages in (1, 4, 3):
            begun += next(streams[0]).tokens
            cluster.head.pause()
            assert not cluster.head.ready()
            cluster.attach(stages=stages)
        (tokens, *_), *others = [told(stream) for stream in streams]
        assert begun + tokens == undisturbed[0][0]
        assert others == undisturbed[1:]
        assert cluster.losses == []
        assert cluster.head.status().losses == 0


def test_a_pause_with_a_verdict_is_a_loss(undisturbed):
    with Cluster() as cluster:
        cluster.attach()
        cluster.next_faults = [None]
        stream = cluster.submit(*ASKED[1])
        cluster.head.pause(PipelineLost("a worker does not answer"))
        assert told(stream) == undisturbed[1]
        assert [str(loss) for loss in cluster.losses] == ["a worker does not answer"]


def test_a_pipeline_that_hangs_is_lost_at_the_deadline_of_its_steps(undisturbed):
    hang = threading.Event()
    with Cluster() as cluster:
        cluster.next_faults = [None]
        cluster.attach(cost=FakeCost(1.0), wait=lambda _: cluster.head.status().completion_tokens < 25 or hang.wait(60))
        assert told(cluster.submit(*ASKED[0])) == undisturbed[0]
        hang.set()
        assert [type(loss) for loss in cluster.losses] == [StepOverdue]
        assert "did not come back within 0.25 s" in str(cluster.losses[0])


@pytest.mark.parametrize(("is_excused", "patience"), [(True, "0.25"), (False, "0.50")])
def test_only_a_step_that_was_given_up_for_nothing_makes_the_next_deadline_longer(is_excused, patience):
    """Whoever looks after the pipeline knows whether a worker was lost indeed."""
    hang = threading.Event()
    with Cluster() as cluster:

        def hangs_at(tokens: int):
            return lambda _: cluster.head.status().completion_tokens < tokens or hang.wait(60)

        def again(cause: Exception) -> None:
            cluster.losses.append(cause)
            if is_excused:
                cluster.head.excuse()
            cluster.attach(cost=FakeCost(1.0), wait=hangs_at((0, 60, 1 << 30)[len(cluster.losses)]))

        cluster.head._on_lost = again
        cluster.attach(cost=FakeCost(1.0), wait=hangs_at(25))
        told(cluster.submit(*ASKED[0], count=90))
        hang.set()
        first, second = cluster.losses
    assert "within 0.25 s" in str(first)
    assert f"within {patience} s" in str(second)


def test_what_is_rehearsed_while_a_frame_is_awaited_changes_nothing(undisturbed):
    class Rehearsing:
        """A ring under which every wait is long enough for a rehearsal."""

        def __init__(self, ring):
            self.send, self.wake, self.close, self._poll = ring.send, ring.wake, ring.close, ring.poll

        def poll(self, timeout_s, rehearse=None):
            if rehearse is not None:
                rehearse()
            return self._poll(timeout_s)

    with Cluster() as cluster:
        cluster.around = Rehearsing
        cluster.attach()
        assert cluster.answers() == undisturbed
        assert cluster.losses == []


def test_requests_that_come_while_there_is_no_pipeline_wait_for_one(undisturbed):
    with Cluster() as cluster:
        cluster.attach(raises_at=0)
        first = cluster.submit(*ASKED[0])
        assert cluster.told.wait(30)
        second = cluster.submit(*ASKED[1])
        assert cluster.head.status().queued == 2
        cluster.attach()
        assert [told(first), told(second)] == undisturbed[:2]


def test_a_request_that_is_cancelled_meanwhile_ends_at_once():
    with Cluster() as cluster:
        cluster.attach(raises_at=0)
        streams = [cluster.submit(b"carried")]
        assert cluster.told.wait(30)
        streams.append(cluster.submit(b"came later"))
        for stream in streams:
            stream.cancel()
            *_, last = stream
            assert last.reason is FinishReason.CANCELLED
        assert cluster.head.status().requests_ended == 2


def test_requests_give_up_when_no_pipeline_comes():
    with Cluster(HeadOptions(max_step_tokens=16, recovery_timeout_s=0.05)) as cluster:
        cluster.attach(raises_at=3)
        ends = [list(cluster.submit(b"patient"))[-1] for _ in range(2)]
        for end in ends:
            assert isinstance(end, Failed)
            assert isinstance(end.error, PipelineLost)
            assert "a programmed fault in step 3" in str(end.error)
            assert "within 0.05 s" in str(end.error)
        cluster.attach()
        assert isinstance(list(cluster.submit(b"later"))[-1], Finished)


def test_requests_whose_time_is_over_end_and_their_slots_are_free(undisturbed):
    stuck, slow = threading.Event(), FakeCost(1.0)
    with Cluster() as cluster:
        cluster.attach(cost=slow, wait=lambda _: cluster.head.status().completion_tokens < 25 or stuck.wait(5))
        streams = [cluster.submit(b"hurried", count=None, timeout_s=1.0) for _ in range(6)]
        ends = [list(stream) for stream in streams]
        stuck.set()
        assert all(isinstance(end[-1].error, DeadlineExceeded) for end in ends)
        assert [len(end) > 1 for end in ends] == [True] * 4 + [False] * 2
        assert "nothing was made" in str(ends[5][-1].error)
        status = cluster.head.status()
        assert (status.endings.deadline, status.active, status.queued, status.losses) == (6, 0, 0, 0)
        assert told(cluster.submit(*ASKED[0], timeout_s=60.0)) == undisturbed[0]


def test_a_request_whose_time_is_over_does_not_wait_for_a_pipeline():
    with Cluster() as cluster:
        cluster.attach(raises_at=0)
        stream = cluster.submit(b"hurried", timeout_s=0.2)
        (last,) = stream
        assert isinstance(last.error, DeadlineExceeded)
        assert cluster.head.status().endings.deadline == 1


def test_an_answer_says_how_long_it_stood_still():
    with Cluster() as cluster:
        cluster.attach(raises_at=3)
        stream = cluster.submit(b"paused")
        assert cluster.told.wait(30)
        cluster.attach()
        *_, last = stream
        *_, undisturbed = cluster.submit(b"paused")
        assert last.usage.paused_s > 0.0
        assert undisturbed.usage.paused_s == 0.0


def test_a_request_that_every_pipeline_fails_of_ends_in_the_end():
    with Cluster() as cluster:
        cluster.next_faults = [1] * MAX_REPLAYS + [None]
        cluster.attach(raises_at=1)
        (*_, last) = cluster.submit(b"a prompt of more than two chunks", count=3)
        assert isinstance(last, Failed)
        assert f"{MAX_REPLAYS} pipelines were lost" in str(last.error)
        assert isinstance(list(cluster.submit(b"another"))[-1], Finished)


def test_closing_ends_those_that_wait():
    with Cluster() as cluster:
        cluster.attach(raises_at=0)
        stream = cluster.submit(b"waits")
        assert cluster.told.wait(30)
        cluster.head.close()
        (last,) = stream
        assert isinstance(last, Failed)
        assert "stopped" in str(last.error)
        with pytest.raises(PipelineLost, match="stopped"):
            cluster.submit(b"late")
