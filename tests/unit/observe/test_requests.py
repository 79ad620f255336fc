"""Every request is counted when it is taken on and when it ends, or when it is refused; from any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from hyperlane.core import Endings, Failed, Finished, FinishReason, Refusals, RequestTimings, Usage
from hyperlane.errors import DeadlineExceeded, EngineFault, Overloaded, PipelineLost, StepOverdue
from hyperlane.observe.requests import RequestCounter


def finished(reason: FinishReason) -> Finished:
    return Finished(reason, Usage(1, 1), RequestTimings(0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("event", "field"),
    [
        *((finished(reason), reason.value) for reason in FinishReason),
        (Failed(DeadlineExceeded("late")), "deadline"),
        (Failed(EngineFault("not finite")), "fault"),
        (Failed(PipelineLost("gone")), "lost"),
        (Failed(StepOverdue("hangs")), "lost"),
        (Failed(RuntimeError("a bug")), "lost"),
    ],
)
def test_an_end_is_counted_by_its_reason(event, field):
    counter = RequestCounter()
    counter.admit()
    assert counter.snapshot().unfinished == 1
    counter.end(event)
    assert counter.snapshot().endings == Endings(**{field: 1})
    assert counter.snapshot().unfinished == 0


def test_a_refusal_is_counted_by_its_reason_and_is_no_admission():
    counter = RequestCounter()
    counter.refuse(Overloaded("full"))
    counter.refuse(PipelineLost("none"))
    counter.refuse(PipelineLost("none"))
    counts = counter.snapshot()
    assert counts.refusals == Refusals(queue_full=1, no_pipeline=2)
    assert (counts.admitted, counts.refusals.total) == (0, 3)


def test_no_count_is_lost_when_many_threads_count():
    counter = RequestCounter()

    def one(number: int) -> None:
        counter.admit()
        counter.end(finished(FinishReason.STOP if number % 2 else FinishReason.LENGTH))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(4000)))
    counts = counter.snapshot()
    assert (counts.admitted, counts.endings, counts.unfinished) == (4000, Endings(stop=2000, length=2000), 0)
