"""One conformance suite for every `Link`, with the frames and helpers that `rings` uses too.

Knows no implementation: a harness brings it. Each check is a function, so that a failing one is named.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from hyperlane.core import Row, StageTiming
from hyperlane.errors import HyperlaneError, LinkBroken, LinkClosed, LinkError, ProtocolError
from hyperlane.wire.codec import HEADER, encode, read_header
from hyperlane.wire.frame import Copy, Fault, Frame, Kind, Message, pass_on
from hyperlane.wire.limits import Limits, Terms
from hyperlane.wire.link import Link
from hyperlane.wire.reader import place_afresh

SECONDS = 30.0
"""After this long a check counts as hung."""

EPOCH = 7
LIMITS = Limits(max_rows=8, max_step_tokens=256, slots=8, context=512, vocab=1000, token_bytes=4096)
HIDDEN = Terms(EPOCH, LIMITS, frozenset({Kind.HIDDEN}))
TOKENS = Terms(EPOCH, LIMITS, frozenset({Kind.TOKENS}))


@dataclass(frozen=True, slots=True)
class LinkHarness:
    """Two ends of one link of the terms `HIDDEN`.

    `inject` puts raw bytes on the way to `there`; `cut` ends that way without BYE.
    """

    here: Link
    there: Link
    inject: Callable[[bytes], None]
    cut: Callable[[], None]


MakeLink = Callable[[], AbstractContextManager[LinkHarness]]


# --- frames ------------------------------------------------------------------------------------------------------


def hidden_frame(step: int, tokens: int = 1, *, rows: int = 1, epoch: int = EPOCH, fill: int | None = None) -> Frame:
    """A HIDDEN frame of some rows of `tokens` tokens each, its payload told by its step."""
    content = bytes([step % 251 if fill is None else fill]) * (LIMITS.token_bytes * tokens * rows)
    said = tuple(Row(slot, step % 100, tokens, (tokens - 1,)) for slot in range(rows))
    return Frame(Kind.HIDDEN, epoch, step, said, (content,) if rows else ())


def token_frame(step: int, tokens: int = 1) -> Frame:
    """A TOKENS frame of one row whose ids are its step."""
    return Frame(Kind.TOKENS, EPOCH, step, (Row(0, 0, tokens, (tokens - 1,)),), (struct.pack("<i", step) * tokens,))


def receive(link: Link) -> Frame:
    """The next step frame, its payload in memory of its own."""
    message = link.recv(place_afresh(HIDDEN))
    assert isinstance(message, Frame), message
    return message


def content(frame: Frame) -> bytes:
    """All bytes of a payload."""
    return b"".join(bytes(buffer) for buffer in frame.payload)


class Background:
    """A call in a thread of its own, whose result or error is fetched with `outcome`."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._result: object = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except (HyperlaneError, AssertionError) as error:
            self._result = error

    @property
    def running(self) -> bool:
        """Whether the call has not returned."""
        return self._thread.is_alive()

    def outcome(self) -> object:
        """What the call returned, or the error that it raised; fails if it hangs."""
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "the call hangs"
        return self._result


@contextmanager
def raises(kind: type[HyperlaneError], saying: str = "") -> Iterator[None]:
    """The block must raise this kind of error, with a message that contains `saying`."""
    message = None
    try:
        yield
    except kind as error:
        message = str(error)
    assert message is not None, f"{kind.__name__} was not raised"
    assert saying in message, message


# --- links -------------------------------------------------------------------------------------------------------


def messages_arrive_in_order_and_whole(make: MakeLink) -> None:
    """Step frames, COPY and FAULT in one FIFO order, every field and byte as sent."""
    timing = StageTiming(0, 1 << 40, 2, 3, 4, 5)
    first = hidden_frame(1)
    sent: list[Message] = [
        first,
        Copy(EPOCH, 2, 0, 1, 17),
        hidden_frame(3, 5, rows=3),
        pass_on(first, Kind.HIDDEN, first.payload, timing),
        Frame(Kind.HIDDEN, EPOCH, 4, (Row(0, 0, 1, (), 3, (5, 999), 0.7),), (bytes(4096),)),
        Fault(EPOCH, 5, 1, "the engine said: ö"),
    ]
    with make() as link:
        sender = Background(lambda: _send_all(link.here, sent))
        for message in sent:
            got = link.there.recv(place_afresh(HIDDEN))
            if isinstance(message, Frame):
                assert isinstance(got, Frame)
                assert (got.kind, got.step, got.rows, got.timings) == (
                    message.kind,
                    message.step,
                    message.rows,
                    message.timings,
                )
                assert content(got) == content(message)
            else:
                assert got == message
        sender.outcome()


def many_small_frames_keep_their_order(make: MakeLink) -> None:
    """Frames that come faster than they are taken are neither lost nor mixed up."""
    with make() as link:
        sender = Background(lambda: _send_all(link.here, map(hidden_frame, range(300))))
        for step in range(300):
            got = receive(link.there)
            assert got.step == step
            assert content(got) == content(hidden_frame(step))
        sender.outcome()


def large_frame_lands_in_the_placed_buffer(make: MakeLink) -> None:
    """A payload far larger than any kernel buffer, sent from several buffers, fills exactly the placed memory."""
    rows = (Row(3, 0, 256, (255,)),)
    parts = [bytes([n]) * (LIMITS.token_bytes * 64) for n in range(4)]
    target = bytearray(LIMITS.token_bytes * 256)
    with make() as link:
        sender = Background(lambda: link.here.send(Frame(Kind.HIDDEN, EPOCH, 1, rows, parts)))
        got = link.there.recv(lambda frame: memoryview(target))
        assert isinstance(got, Frame)
        assert target == b"".join(parts)
        assert sender.outcome() is None


def frame_without_rows_arrives(make: MakeLink) -> None:
    """A frame of no rows is a frame: its place is asked for, with an empty payload."""
    asked: list[Frame] = []

    def place(frame: Frame) -> memoryview:
        asked.append(frame)
        return memoryview(b"")

    with make() as link:
        link.here.send(hidden_frame(9, rows=0))
        got = link.there.recv(place)
        assert isinstance(got, Frame)
        assert (got.step, got.rows, content(got)) == (9, (), b"")
        assert len(asked) == 1


def abort_wakes_a_blocked_recv(make: MakeLink) -> None:
    """`abort` from another thread ends a `recv` that waits, with LinkClosed; so does every later call."""
    with make() as link:
        blocked = Background(lambda: receive(link.there))
        link.there.abort()
        link.there.abort()
        assert isinstance(blocked.outcome(), LinkClosed)
        with raises(LinkClosed):
            receive(link.there)


def who_sleeps_gets_frames_and_is_woken(make: MakeLink) -> None:
    """`asleep` changes nothing but how the wait is spent, also beside a `recv` that looks."""

    def asleep(link: Link) -> Message:
        return link.recv(place_afresh(HIDDEN), asleep=True)

    with make() as link:
        for step in range(6):
            blocked = Background(lambda: asleep(link.there))
            link.here.send(hidden_frame(step, 1 + 20 * (step % 2)))
            got = blocked.outcome()
            assert isinstance(got, Frame), got
            assert (got.step, content(got)) == (step, content(hidden_frame(step, 1 + 20 * (step % 2))))
            link.here.send(hidden_frame(step))
            assert receive(link.there).step == step
        blocked = Background(lambda: asleep(link.there))
        link.there.abort()
        assert isinstance(blocked.outcome(), LinkClosed)


def abort_wakes_a_blocked_send(make: MakeLink) -> None:
    """`abort` from another thread ends a `send` that nobody takes, with LinkClosed."""
    sent = threading.Event()

    def flood(link: Link) -> None:
        for step in range(1000):
            link.send(hidden_frame(step, 256))
            sent.set()

    with make() as link:
        blocked = Background(lambda: flood(link.here))
        sent.wait(0.2)  # whether it is blocked by then or not, the outcome is the same
        link.here.abort()
        assert isinstance(blocked.outcome(), LinkClosed)


def end_in_mid_frame_is_broken(make: MakeLink) -> None:
    """Wherever a frame is cut off, the receiver learns LinkBroken, never a short frame."""
    whole = b"".join(bytes(buffer) for buffer in encode(hidden_frame(1)))
    for length in (0, 1, HEADER.size - 1, HEADER.size, HEADER.size + 5, len(whole) - 1):
        with make() as link:
            link.inject(whole[:length])
            link.cut()
            with raises(LinkBroken):
                receive(link.there)


def bye_comes_after_all_frames(make: MakeLink) -> None:
    """`close` is told to the peer as LinkClosed, once it has every frame before it."""
    with make() as link:
        for step in range(3):
            link.here.send(hidden_frame(step))
        link.here.close()
        link.here.close()
        assert [receive(link.there).step for _ in range(3)] == [0, 1, 2]
        with raises(LinkClosed):
            receive(link.there)
        with raises(LinkClosed):
            link.here.send(hidden_frame(4))
        with raises(LinkClosed):
            receive(link.here)


def send_to_a_peer_that_is_gone_is_broken(make: MakeLink) -> None:
    """Sooner or later `send` tells that nobody is there."""
    with make() as link:
        link.there.abort()
        with raises(LinkBroken):
            for step in range(10_000):
                link.here.send(hidden_frame(step))


def what_breaks_the_protocol_closes_the_link(make: MakeLink) -> None:
    """Wrong epoch, kind, magic, version or lengths: ProtocolError before `place`, and the link is gone."""
    good = encode(hidden_frame(1))[0]
    assert isinstance(good, bytes)
    bad = [
        bytes(encode(hidden_frame(1, epoch=EPOCH + 1))[0]),
        bytes(encode(token_frame(1))[0]),
        b"GET / HTTP/1.1\r\nHost: worker\r\nAccept: */*\r\n\r\n",
        good[:4] + b"\x09" + good[5:],
        good[:6] + b"\x01\x00" + good[8:],
        _with_header(good, payload_bytes=LIMITS.max_payload_bytes + 1),
        _with_header(good, payload_bytes=LIMITS.token_bytes - 1),
        _with_header(good, payload_bytes=(1 << 64) - 1),
        _with_header(good, rows_bytes=(1 << 32) - 1),
        _with_header(good, rows=LIMITS.max_rows + 1),
        _with_header(good, timings=0xFFFF),
        bytes(encode(Copy(EPOCH, 1, 0, LIMITS.slots, 1))[0]),
    ]

    def place(frame: Frame) -> memoryview:
        raise AssertionError(f"place was asked for {frame}")

    for data in bad:
        with make() as link:
            link.inject(data)
            with raises(ProtocolError):
                link.there.recv(place)
            with raises(LinkClosed):
                link.there.recv(place)
            with raises(LinkError):
                link.there.send(hidden_frame(1))


def place_of_another_length_is_a_protocol_error(make: MakeLink) -> None:
    """A stage that expects other bytes for these rows never gets these."""
    with make() as link:
        link.here.send(hidden_frame(1))
        with raises(ProtocolError):
            link.there.recv(lambda frame: memoryview(bytearray(LIMITS.token_bytes + 1)))


LINK_CHECKS: tuple[Callable[[MakeLink], None], ...] = (
    messages_arrive_in_order_and_whole,
    many_small_frames_keep_their_order,
    large_frame_lands_in_the_placed_buffer,
    frame_without_rows_arrives,
    abort_wakes_a_blocked_recv,
    who_sleeps_gets_frames_and_is_woken,
    abort_wakes_a_blocked_send,
    end_in_mid_frame_is_broken,
    bye_comes_after_all_frames,
    send_to_a_peer_that_is_gone_is_broken,
    what_breaks_the_protocol_closes_the_link,
    place_of_another_length_is_a_protocol_error,
)


def check_link(make: MakeLink) -> None:
    """Run every check of `LINK_CHECKS`."""
    for check in LINK_CHECKS:
        check(make)


def _send_all(link: Link, messages: Iterable[Message]) -> None:
    for message in messages:
        link.send(message)


def _with_header(frame: bytes, **changed: int) -> bytes:
    header = read_header(frame)._asdict() | changed
    return HEADER.pack(*header.values()) + frame[HEADER.size :]
