"""`Answers`: many streams as one, in one event loop, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from hyperlane.api.answers import HELD_EVENTS, Answers, Tally, failure_of
from hyperlane.core import Event, Failed, Finished, FinishReason, RequestTimings, TextDelta, Usage
from hyperlane.errors import PipelineLost


def text(word: str) -> TextDelta:
    return TextDelta(word, (1,))


def end(reason: FinishReason = FinishReason.STOP) -> Finished:
    return Finished(reason, Usage(3, 2, 1), RequestTimings(0, 0, 0))


class Line:
    """A stream that a test feeds."""

    def __init__(self, *events: Event) -> None:
        self.queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self.taken = 0
        self.cancels = 0
        for event in events:
            self.queue.put_nowait(event)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self.queue.get()) is not None:
            if isinstance(event, Exception):
                raise event
            self.taken += 1
            yield event

    def cancel(self) -> None:
        self.cancels += 1


async def test_events_that_wait_come_in_one_batch():
    line = Line(text("a"), text("b"), end())
    async with Answers([line]) as answers:
        assert await answers.batch() == [(0, text("a")), (0, text("b")), (0, end())]
        assert await answers.batch() is None
    assert line.cancels == 0


async def test_events_carry_their_sequence_in_order_of_arrival():
    first, second = Line(text("a")), Line()
    async with Answers([first, second]) as answers:
        assert await answers.batch() == [(0, text("a"))]
        second.queue.put_nowait(text("b"))
        assert await answers.batch() == [(1, text("b"))]
        first.queue.put_nowait(end())
        assert await answers.batch() == [(0, end())]
        second.queue.put_nowait(end())
        assert await answers.batch() == [(1, end())]
        assert await answers.batch() is None


async def test_a_long_silence_is_an_empty_batch():
    async with Answers([Line()], heartbeat_s=0.01) as answers:
        assert await answers.batch() == []
        assert await answers.batch() == []


async def test_leaving_cancels_what_has_not_ended():
    ended, running = Line(end()), Line(text("a"))
    async with Answers([ended, running]) as answers:
        await answers.batch()
    assert (ended.cancels, running.cancels) == (0, 1)


async def test_closing_wakes_the_reader():
    line = Line()
    async with Answers([line]) as answers:
        reading = asyncio.create_task(answers.batch())
        await asyncio.sleep(0)
        answers.close()
        assert await reading is None
        answers.close()
    assert line.cancels == 1


async def test_failing_wakes_the_reader_with_the_error():
    error = PipelineLost("gone")
    line = Line()
    async with Answers([line]) as answers:
        reading = asyncio.create_task(answers.batch())
        await asyncio.sleep(0)
        answers.fail(error)
        assert await reading == [(0, Failed(error))]
        assert await answers.batch() is None
    assert line.cancels == 1


async def test_failing_after_the_end_changes_nothing():
    async with Answers([Line(end())]) as answers:
        assert await answers.batch() == [(0, end())]
        answers.fail(PipelineLost("gone"))
        assert await answers.batch() is None


@pytest.mark.parametrize("fault", [ZeroDivisionError("bug"), None], ids=["raises", "ends without a result"])
async def test_a_broken_stream_does_not_leave_its_client_waiting(fault):
    line = Line()
    line.queue.put_nowait(fault)
    async with Answers([line]) as answers:
        ((index, event),) = await answers.batch()
    assert index == 0
    assert isinstance(failure_of(event), type(fault) if fault else RuntimeError)
    assert line.cancels == 1


async def test_a_reader_that_rests_leaves_events_in_the_stream():
    line = Line(*[text("a")] * (10 * HELD_EVENTS), end())
    async with Answers([line]) as answers:
        for _ in range(3 * HELD_EVENTS):
            await asyncio.sleep(0)
        assert line.taken == HELD_EVENTS
        total = 0
        while (batch := await answers.batch()) is not None:
            assert len(batch) <= HELD_EVENTS
            total += len(batch)
    assert total == 10 * HELD_EVENTS + 1


def test_an_end_by_the_server_is_a_failure_and_other_ends_are_not():
    assert failure_of(end(FinishReason.CANCELLED)) is not None
    assert failure_of(end(FinishReason.LENGTH)) is None
    assert failure_of(text("a")) is None


def test_a_prompts_tokens_count_once_for_its_sequences():
    tally = Tally(2)
    for index in range(4):
        tally.add(index, Usage(3, 2, 1))
    assert tally.total == Usage(prompt_tokens=6, completion_tokens=8, cached_tokens=2)
