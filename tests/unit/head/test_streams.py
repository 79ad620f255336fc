"""A request's stream: order, ends, slow readers, readers in threads and coroutines."""

import asyncio
import threading

import pytest

from hyperlane.core import Failed, Finished, FinishReason, RequestTimings, TextDelta, TokenChoice, TokenLogprob, Usage
from hyperlane.errors import PipelineLost
from hyperlane.head.streams import COALESCE_AT, Stream

END = Finished(FinishReason.STOP, Usage(1, 2), RequestTimings(0.0, 0.0, 0.0))


def delta(number: int) -> TextDelta:
    return TextDelta(f"<{number}>", (number,))


def test_a_thread_reads_events_in_order_and_then_the_end():
    stream = Stream(lambda: None)
    for event in (delta(1), delta(2), END):
        stream.publish(event)
    assert list(stream) == [delta(1), delta(2), END]


def test_nothing_is_told_after_the_last_event():
    stream = Stream(lambda: None)
    failed = Failed(PipelineLost("gone"))
    for event in (delta(1), failed, delta(2), END):
        stream.publish(event)
    assert list(stream) == [delta(1), failed]


def test_a_waiting_thread_is_woken():
    stream = Stream(lambda: None)
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(stream))
    reader.start()
    stream.publish(delta(1))
    stream.publish(END)
    reader.join(10)
    assert seen == [delta(1), END]


async def test_a_waiting_coroutine_is_woken_from_another_thread():
    stream = Stream(lambda: None)
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    threading.Thread(target=stream.publish, args=(delta(1),)).start()
    assert await asyncio.wait_for(waiting, 10) == delta(1)
    stream.publish(END)
    assert [event async for event in stream] == [END]


async def test_a_reader_that_was_cancelled_in_its_wait_loses_no_event():
    stream = Stream(lambda: None)
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    stream.publish(delta(1))
    assert await anext(stream) == delta(1)


def test_publishing_to_a_reader_whose_loop_is_gone_is_harmless():
    stream = Stream(lambda: None)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0)

    asyncio.run(give_up())
    stream.publish(delta(1))
    stream.publish(END)


def test_what_a_slow_reader_leaves_is_melted_and_nothing_is_lost():
    stream = Stream(lambda: None)
    choice = TokenChoice(TokenLogprob(7, b"x", -1.0), ())
    count = 10 * COALESCE_AT
    for number in range(count):
        stream.publish(TextDelta(f"<{number}>", (number,), (choice,)))
    stream.publish(END)
    *deltas, last = stream
    assert len(deltas) <= COALESCE_AT + 1
    assert "".join(event.text for event in deltas) == "".join(f"<{number}>" for number in range(count))
    assert [token for event in deltas for token in event.tokens] == list(range(count))
    assert sum(len(event.logprobs) for event in deltas) == count
    assert last == END


def test_cancel_reaches_the_head_until_the_request_has_ended():
    calls = []
    stream = Stream(lambda: calls.append("cancel"))
    stream.cancel()
    stream.publish(END)
    stream.cancel()
    assert calls == ["cancel"]
