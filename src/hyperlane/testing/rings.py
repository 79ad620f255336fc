"""One conformance suite for every `Ring`. Knows no implementation: a harness brings it, with links for its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from hyperlane.core import StageTiming
from hyperlane.errors import EngineFault, LinkClosed, LinkError
from hyperlane.testing.links import (
    EPOCH,
    LIMITS,
    SECONDS,
    TOKENS,
    Background,
    content,
    hidden_frame,
    raises,
    token_frame,
)
from hyperlane.wire.frame import Copy, Fault, Frame, Kind, pass_on
from hyperlane.wire.link import Link, Ring
from hyperlane.wire.reader import place_afresh


@dataclass(frozen=True, slots=True)
class RingHarness:
    """A ring of terms TOKENS, HIDDEN, …, HIDDEN with, for each stage, its incoming and its outgoing link."""

    ring: Ring
    stages: Sequence[tuple[Link, Link]]


MakeRing = Callable[[int], AbstractContextManager[RingHarness]]


def relay(incoming: Link, outgoing: Link) -> None:
    """A stage that computes nothing: passes on every message until its incoming link ends, then ends the other."""
    expand = LIMITS.token_bytes // 4

    def place(frame: Frame) -> memoryview:
        width = 4 if frame.kind is Kind.TOKENS else LIMITS.token_bytes
        return memoryview(bytearray(width * sum(row.count for row in frame.rows)))

    try:
        while True:
            message = incoming.recv(place)
            if isinstance(message, Frame):
                payload = content(message) * (expand if message.kind is Kind.TOKENS else 1)
                message = pass_on(message, Kind.HIDDEN, (payload,), StageTiming(len(message.timings), 1, 2, 3, 4, 5))
            outgoing.send(message)
    except LinkError:
        outgoing.close()
        incoming.close()


def collect(ring: Ring, count: int) -> list[Frame]:
    """Poll until so many frames came back."""
    frames: list[Frame] = []
    while len(frames) < count:
        frames += ring.poll(SECONDS)
    return frames


def frames_go_round_in_order(make: MakeRing) -> None:
    """What is sent comes back once, in order, with one timing record for each stage."""
    for stages in (1, 3):
        with make(stages) as harness, _relaying(harness.stages):
            harness.ring.send(Copy(EPOCH, 1, 0, 1, 4))
            for step in range(50):
                harness.ring.send(token_frame(step, 1 + step % 7))
            frames = collect(harness.ring, 50)
            assert [frame.step for frame in frames] == list(range(50))
            assert all(content(f) == content(token_frame(f.step, 1 + f.step % 7)) * 1024 for f in frames)
            assert all([t.stage for t in frame.timings] == list(range(stages)) for frame in frames)


def ring_never_deadlocks(make: MakeRing) -> None:
    """Frames a hundred times larger than the buffers: `send` returns at once, and all come back."""
    with make(3) as harness, _relaying(harness.stages):
        for step in range(12):
            harness.ring.send(token_frame(step, 100))
        frames = collect(harness.ring, 12)
        assert [frame.step for frame in frames] == list(range(12))
        assert all(len(content(frame)) == 100 * LIMITS.token_bytes for frame in frames)


def wake_ends_a_poll(make: MakeRing) -> None:
    """`wake` before or during a poll makes it return nothing; `poll(0)` does not wait."""
    with make(1) as harness:
        harness.ring.wake()
        assert list(harness.ring.poll(SECONDS)) == []
        polling = Background(lambda: list(harness.ring.poll(SECONDS)))
        harness.ring.wake()
        assert polling.outcome() == []
        assert list(harness.ring.poll(0)) == []


def fault_is_raised_after_the_frames_before_it(make: MakeRing) -> None:
    """A stage's cause reaches the head as EngineFault, and every later poll says the same."""
    with make(1) as harness:
        _, outgoing = harness.stages[0]
        outgoing.send(hidden_frame(1))
        outgoing.send(Fault(EPOCH, 2, 0, "out of memory"))
        assert [frame.step for frame in collect(harness.ring, 1)] == [1]
        for _ in range(2):
            with raises(EngineFault, "out of memory"):
                harness.ring.poll(SECONDS)


def lost_stage_is_told_after_its_frames(make: MakeRing) -> None:
    """When the last stage ends the connection, poll raises LinkError once the frames before it were returned."""
    with make(1) as harness:
        incoming, outgoing = harness.stages[0]
        outgoing.send(hidden_frame(1))
        outgoing.abort()
        incoming.abort()
        frames: list[Frame] = []
        with raises(LinkError):
            for _ in range(1000):
                frames += harness.ring.poll(SECONDS)
        assert [frame.step for frame in frames] == [1]


def closed_ring_refuses(make: MakeRing) -> None:
    """After `close` both verbs raise LinkClosed, `wake` does nothing, and stage 0 hears BYE."""
    with make(1) as harness:
        harness.ring.close()
        harness.ring.close()
        harness.ring.wake()
        with raises(LinkClosed):
            harness.ring.send(token_frame(1))
        with raises(LinkClosed):
            harness.ring.poll(0)
        with raises(LinkClosed):
            harness.stages[0][0].recv(place_afresh(TOKENS))


RING_CHECKS: tuple[Callable[[MakeRing], None], ...] = (
    frames_go_round_in_order,
    ring_never_deadlocks,
    wake_ends_a_poll,
    fault_is_raised_after_the_frames_before_it,
    lost_stage_is_told_after_its_frames,
    closed_ring_refuses,
)


def check_ring(make: MakeRing) -> None:
    """Run every check of `RING_CHECKS`."""
    for check in RING_CHECKS:
        check(make)


@contextmanager
def _relaying(stages: Sequence[tuple[Link, Link]]) -> Iterator[None]:
    threads = [Background(lambda pair=pair: relay(*pair)) for pair in stages]  # type: ignore[misc]
    try:
        yield
    finally:
        for incoming, outgoing in stages:
            incoming.abort()
            outgoing.abort()
        for thread in threads:
            thread.outcome()
