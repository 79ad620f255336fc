"""Measuring a path: what is answered, what is refused, and which rate counts."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from hyperlane.core import Address, HeadId
from hyperlane.errors import LinkBroken, ProtocolError, WorkerUnreachable
from hyperlane.wire import probe_echo
from hyperlane.wire.codec import HEADER
from hyperlane.wire.dial import dial
from hyperlane.wire.frame import Hello
from hyperlane.wire.listener import DataListener
from hyperlane.wire.probe import FIRST_WINDOW, LARGEST_WINDOW, Arrival, measure_path, steady_rate, wider
from hyperlane.wire.probe_frame import (
    MAX_PAYLOAD_BYTES,
    Probe,
    ProbeReader,
    encode_probe,
    probe_hello,
    read_probe,
)

HEAD = HeadId(b"h" * 16)


def nobody(hello: Hello, _peer: object) -> object:
    raise AssertionError(f"a measured path was taken for a link: {hello}")


@pytest.fixture
def port():
    listener = DataListener(Address("127.0.0.1", 0), nobody, nobody)
    yield listener.address
    listener.close()


def test_round_trip_and_both_bandwidths_are_measured(port):
    cost = measure_path(port, HEAD, both_ways=True)
    assert cost.rtt_s > 0
    assert min(cost.out_bytes_per_s, cost.in_bytes_per_s) > 1e6


def test_the_way_back_is_measured_only_when_asked_for(port):
    assert measure_path(port, HEAD).in_bytes_per_s == 0


def test_nobody_at_the_address_is_said(port):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = Address("127.0.0.1", free.getsockname()[1])
    with pytest.raises(WorkerUnreachable, match=str(address)):
        measure_path(address, HEAD)


def test_only_so_many_paths_are_measured_at_once(port):
    with ExitStack() as others:
        for _ in range(probe_echo.AT_ONCE):
            others.enter_context(dial(port, probe_hello(HEAD), 5.0)[0])
        with pytest.raises(LinkBroken, match="other paths are being measured"):
            measure_path(port, HEAD)


def test_answers_come_in_order_and_as_long_as_asked_for(port):
    stream, _ = dial(port, probe_hello(HEAD), 5.0)
    with stream:
        stream.settimeout(20)
        stream.sendall(encode_probe(Probe(1, 10, 300)) + encode_probe(Probe(2, MAX_PAYLOAD_BYTES)))
        reader = ProbeReader(stream)
        assert [reader.next(), reader.next()] == [Probe(1, 300), Probe(2, 0)]


@pytest.mark.parametrize("probe", [Probe(1, 0, MAX_PAYLOAD_BYTES + 1), Probe(1, MAX_PAYLOAD_BYTES + 1)])
def test_who_asks_for_too_much_is_dropped_without_an_answer(port, probe):
    stream, _ = dial(port, probe_hello(HEAD), 5.0)
    with stream:
        stream.settimeout(20)
        stream.sendall(encode_probe(probe)[: HEADER.size + 4])
        assert stream.recv(1) == b""


@pytest.mark.parametrize(("at", "value"), [(5, 2), (8, 1), (36, 1), (38, 1), (32, 8)], ids=str)
def test_another_frame_is_no_probe(at, value):
    data = bytearray(encode_probe(Probe(1, 0)))
    data[at] = value
    with pytest.raises(ProtocolError):
        read_probe(data)


def test_the_burst_before_it_is_steady_does_not_count():
    burst = [Arrival(0.0, 0), Arrival(0.001, 1000)]
    steady = [Arrival(0.001 * i, 1000 + 10 * (i - 1)) for i in range(2, 101)]
    assert steady_rate([*burst, *steady]) == pytest.approx(10_000)


def test_of_very_few_arrivals_all_count():
    assert steady_rate([Arrival(0.0, 0), Arrival(0.5, 100)]) == pytest.approx(200)


@pytest.mark.parametrize(("rate", "rtt_s"), [(125e6, 1e-4), (125e6, 0.02), (12.5e6, 0.05), (1.25e6, 1e-3)], ids=str)
def test_so_much_is_under_way_that_the_path_is_full_but_not_for_long(rate, rtt_s):
    window = FIRST_WINDOW
    for number in range(1, 200):
        reached = min(rate, window / rtt_s)
        window = wider(window, Arrival(1.0 + number * 0.01, int(reached * (1.0 + number * 0.01))), rtt_s)
    assert window >= min(rate * rtt_s, LARGEST_WINDOW)
    assert window <= max(FIRST_WINDOW, 2 * rate * max(0.015, 2 * rtt_s))
