"""What is particular to links and rings over sockets."""

import dataclasses
import itertools
import os
import socket
from contextlib import suppress

import pytest

from hyperlane.core import Row
from hyperlane.errors import EngineFault, LinkBroken, LinkClosed, LinkError
from hyperlane.testing.links import EPOCH, HIDDEN, LIMITS, TOKENS, Background, content, hidden_frame, token_frame
from hyperlane.testing.loopback import tcp_link, tcp_sockets
from hyperlane.wire import sockets
from hyperlane.wire.codec import encode
from hyperlane.wire.frame import Fault, Frame, Kind
from hyperlane.wire.reader import place_afresh
from hyperlane.wire.ring import TcpRing
from hyperlane.wire.tcp import TcpLink

PIECES = [b"", b"abc", bytearray(b"defg"), memoryview(b"hijklmno").cast("H"), b"p"]


@pytest.mark.parametrize("sent", range(17))
def test_rest_after_any_number_of_bytes_is_the_rest(sent):
    assert b"".join(bytes(piece) for piece in sockets.rest_after(PIECES, sent)) == b"abcdefghijklmnop"[sent:]


@pytest.fixture(params=["sendmsg", "no sendmsg"])
def sendmsg(request, monkeypatch):
    if request.param == "no sendmsg":
        monkeypatch.setattr(sockets, "_HAS_SENDMSG", False)
    elif not sockets._HAS_SENDMSG:
        pytest.skip("this platform has no sendmsg")


@pytest.mark.parametrize("size", [1, 1000, 1 << 18])
def test_frame_of_many_buffers_arrives_whole(sendmsg, monkeypatch, size):
    monkeypatch.setattr(sockets, "_MOST_BUFFERS", 7)
    payload = os.urandom(64 * size)
    parts = [payload[at : at + size] for at in range(0, len(payload), size)]
    tokens = 64 * size // 4
    limits = dataclasses.replace(LIMITS, max_step_tokens=tokens, context=tokens)
    terms = dataclasses.replace(TOKENS, limits=limits)
    here, there = (TcpLink(sock, terms) for sock in tcp_sockets())
    sender = Background(lambda: here.send(Frame(Kind.TOKENS, EPOCH, 1, (Row(0, 0, tokens),), parts)))
    got = there.recv(place_afresh(terms))
    assert sender.outcome() is None
    assert content(got) == payload
    here.close()
    there.close()


def test_payload_is_received_into_the_placed_memory_itself():
    target = bytearray(LIMITS.token_bytes)
    with tcp_link() as link:
        link.here.send(hidden_frame(5))
        got = link.there.recv(lambda frame: memoryview(target))
        assert got.payload[0].obj is target
        assert target == content(hidden_frame(5))


def test_frames_that_were_read_ahead_are_not_lost():
    with tcp_link() as link:
        link.inject(b"".join(bytes(b) for step in range(40) for b in encode(hidden_frame(step, rows=0))))
        steps = [link.there.recv(lambda frame: memoryview(b"")).step for _ in range(40)]
        assert steps == list(range(40))


def test_reset_by_the_peer_is_broken():
    here, there = tcp_sockets()
    link = TcpLink(here, HIDDEN)
    there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0" if os.name != "nt" else b"\1\0\0\0")
    there.close()
    with pytest.raises(LinkBroken):
        link.recv(place_afresh(HIDDEN))
    link.close()


def test_close_does_not_wait_for_a_peer_that_takes_nothing():
    here, there = tcp_sockets(4096)
    link = TcpLink(here, HIDDEN)
    here.setblocking(False)
    with suppress(BlockingIOError):
        while here.send(bytes(1 << 16)):
            pass
    here.setblocking(True)
    link.close()
    there.close()
    with pytest.raises(LinkClosed):
        link.send(hidden_frame(1))


# --- ring --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ring_ends():
    """A ring and the raw sockets at its other ends: (ring, stage 0's, the last stage's)."""
    up, first = tcp_sockets(4096)
    down, last = tcp_sockets(4096)
    ring = TcpRing((up, TOKENS), (down, HIDDEN))
    yield ring, first, last
    ring.close()
    first.close()
    last.close()


def poll_until_it_raises(ring):
    frames = []
    for _ in range(1000):
        frames += ring.poll(10)
    return frames


def test_cause_is_heard_even_when_the_other_link_ends_first(ring_ends):
    ring, first, last = ring_ends
    last.sendall(encode(Fault(EPOCH, 3, 1, "out of memory"))[0])
    first.close()
    with pytest.raises(EngineFault, match="stage 1, step 3: out of memory"):
        poll_until_it_raises(ring)


def test_cause_that_stage_0_sends_back_is_heard(ring_ends):
    ring, first, _ = ring_ends
    first.sendall(encode(Fault(EPOCH, 3, 0, "no such row"))[0])
    with pytest.raises(EngineFault, match="no such row"):
        poll_until_it_raises(ring)


def test_end_of_stage_0_alone_is_noticed_without_a_send(ring_ends):
    ring, first, _ = ring_ends
    first.close()
    with pytest.raises(LinkBroken, match="stage 0"):
        poll_until_it_raises(ring)
    ring.send(token_frame(1))  # tells nothing new and loses nothing that was not lost
    with pytest.raises(LinkBroken, match="stage 0"):
        ring.poll(0)


def test_frames_before_a_malformed_one_are_returned_first(ring_ends):
    ring, _, last = ring_ends
    good = b"".join(bytes(b) for b in encode(hidden_frame(1, rows=0)))
    last.sendall(good + good + b"x" * 40)
    frames = []
    while len(frames) < 2:
        frames += ring.poll(10)
    with pytest.raises(LinkError, match="the last stage at"):
        ring.poll(10)
    assert len(frames) == 2


def test_step_frame_from_stage_0_to_the_head_is_refused(ring_ends):
    ring, first, _ = ring_ends
    first.sendall(encode(token_frame(1))[0])
    with pytest.raises(LinkError, match="stage 0"):
        poll_until_it_raises(ring)


def test_send_returns_at_once_and_what_was_queued_arrives_in_order(ring_ends):
    ring, first, _ = ring_ends
    for step in range(20):
        ring.send(token_frame(step, 256))
    stage = TcpLink(first, TOKENS)
    steps = []
    receiving = Background(lambda: steps.extend(stage.recv(place_afresh(TOKENS)).step for _ in range(20)))
    for _ in itertools.takewhile(lambda _: receiving.running, itertools.count()):
        ring.poll(0.001)
    receiving.outcome()
    assert steps == list(range(20))


def test_frame_in_many_pieces_is_put_together(ring_ends):
    ring, _, last = ring_ends
    data = b"".join(bytes(b) for b in encode(hidden_frame(7, 2)))
    frames = []
    for at in range(0, len(data), 100):
        last.sendall(data[at : at + 100])
        frames += ring.poll(0)
    while not frames:
        frames += ring.poll(10)
    assert content(frames[0]) == content(hidden_frame(7, 2))
