from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

import pytest

from hyperlane.core import Address
from hyperlane.testing.lan_relay import Direction, Shape, wire_bytes
from hyperlane.testing.shaper import Cable, Shaper

WITHIN_S = 30.0


@pytest.fixture
def echo():
    """The address of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(sock,), daemon=True).start()

        def answer(sock: socket.socket) -> None:
            with sock:
                try:
                    while data := sock.recv(1 << 16):
                        sock.sendall(data)
                except OSError:
                    return

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        yield Address(*listener.getsockname()[:2])
        listener.shutdown(socket.SHUT_RDWR)
    server.join(WITHIN_S)


def connected(shaper: Shaper) -> socket.socket:
    return socket.create_connection((shaper.address.host, shaper.address.port), WITHIN_S)


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        assert piece
        data += piece
    return data


def test_bytes_pass_in_order_and_not_before_they_are_due(echo):
    with Shaper(echo, Cable(delay_ms=20, jitter_ms=5, rate_mbit=500)) as shaper, connected(shaper) as sock:
        sent = bytes(range(256)) * 2000
        began = time.monotonic()
        sender = threading.Thread(target=sock.sendall, args=(sent,))
        sender.start()
        assert exactly(sock, len(sent)) == sent
        assert time.monotonic() - began >= 0.04
        sender.join()


def test_a_cut_cable_is_silent_and_a_healed_one_loses_nothing(echo):
    with Shaper(echo) as shaper, connected(shaper) as sock:
        shaper.cut()
        sock.sendall(b"held")
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(4)
        sock.settimeout(WITHIN_S)
        shaper.heal()
        assert exactly(sock, 4) == b"held"


def test_a_reset_ends_connections_and_lets_new_ones_be_made(echo):
    with Shaper(echo) as shaper:
        with connected(shaper) as sock:
            sock.sendall(b"a")
            assert exactly(sock, 1) == b"a"
            shaper.reset()
            with suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        with connected(shaper) as sock:
            sock.sendall(b"b")
            assert exactly(sock, 1) == b"b"


def test_the_end_of_a_stream_passes_on(echo):
    with Shaper(echo) as shaper, connected(shaper) as sock:
        sock.sendall(b"last")
        sock.shutdown(socket.SHUT_WR)
        assert exactly(sock, 4) == b"last"
        assert sock.recv(1) == b""


# --- the relay's arithmetic, which needs no device -----------------------------------------------------------


class Dice:
    """Randomness that always says the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.value


PLAIN = bytes(10) + bytes(1476)
BULK = bytes([1, 1]) + (54).to_bytes(2, "little") + (1446).to_bytes(2, "little") + bytes(4) + bytes(54 + 10 * 1446)


def test_a_relayed_frame_takes_its_time_on_the_cable_and_then_the_delay():
    lane = Direction()
    shape = Shape(delay_ms=1.0, rate_mbit=12.0)
    lane.take(PLAIN, shape, 0.0, Dice(0.5))
    lane.take(PLAIN, shape, 0.0, Dice(0.5))
    assert wire_bytes(PLAIN) == 1500
    assert lane.due(0.0019) is None
    assert lane.due(0.0021) == PLAIN
    assert lane.due(0.0029) is None
    assert lane.due(0.0031) == PLAIN


def test_a_segmented_frame_counts_as_the_packets_it_becomes():
    assert wire_bytes(BULK) == 10 * (54 + 1446 + 24)


def test_a_relay_loses_what_it_is_told_to_and_what_its_queue_cannot_hold():
    lane = Direction()
    lane.take(PLAIN, Shape(loss=0.5), 0.0, Dice(0.4))
    lane.take(PLAIN, Shape(cut=True), 0.0, Dice(0.9))
    lane.take(PLAIN, Shape(queue_bytes=10), 0.0, Dice(0.9))
    assert lane.due(9.0) is None
    lane.take(PLAIN, Shape(loss=0.5), 0.0, Dice(0.6))
    assert lane.due(9.0) == PLAIN


def test_jitter_does_not_reorder():
    lane = Direction()
    lane.take(b"a" * 10, Shape(jitter_ms=9.0), 0.0, Dice(1.0))
    lane.take(b"b" * 10, Shape(jitter_ms=9.0), 0.001, Dice(0.0))
    assert [lane.due(0.0095), lane.due(0.0095)] == [b"a" * 10, b"b" * 10]
