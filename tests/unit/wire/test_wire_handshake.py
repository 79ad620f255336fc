"""Opening links: who is admitted, what a dialler is told, and what strangers cost."""

import dataclasses
import os
import queue
import random
import socket
import sys
import threading

import pytest

from hyperlane.core import Address, ElementType, Epoch, HeadId, Precision, Row
from hyperlane.errors import ConfigError, LinkBroken, LinkClosed, ProtocolError, VersionMismatch, WorkerUnreachable
from hyperlane.wire import codec, sockets
from hyperlane.wire.dial import connect, dial
from hyperlane.wire.frame import Frame, Hello, Kind, Role
from hyperlane.wire.hello import HELLO_BYTES, answer_to, encode_hello
from hyperlane.wire.limits import Limits
from hyperlane.wire.listener import DataListener, Refusal
from hyperlane.wire.reader import place_afresh
from hyperlane.wire.ring import TcpRing

LIMITS = Limits(max_rows=4, max_step_tokens=64, slots=4, context=256, vocab=300, token_bytes=8)
UP = Hello(Epoch(HeadId(b"h" * 16), 5), 1, Role.UPSTREAM, LIMITS, ElementType.F32, Precision.RAW, 2, "0.1.0")
LOOPBACK = Address("127.0.0.1", 0)


class Worker:
    """A data port that admits what `judge` says, and keeps the links."""

    def __init__(self, judge=lambda hello: hello.limits, **options):
        self.links = queue.SimpleQueue()
        self.delivered = []
        self.listener = DataListener(LOOPBACK, lambda hello, _peer: judge(hello), self.deliver, **options)
        self.address = self.listener.address

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        for link in self.delivered:
            link.close()

    def deliver(self, hello, link):
        self.delivered.append(link)
        self.links.put((hello, link))

    def link(self):
        return self.links.get(timeout=20)

    def stranger(self):
        return socket.create_connection((self.address.host, self.address.port), 20)


def rest_of(sock):
    """Everything until the other side ends the connection."""
    sock.settimeout(20)
    data = b""
    try:
        while piece := sock.recv(4096):
            data += piece
    except ConnectionError:
        pass
    return data


def test_admitted_link_carries_frames_both_sides_agreed_on():
    with Worker() as worker:
        link = connect(worker.address, UP, 20)
        hello, there = worker.link()
        assert hello == UP
        assert link.terms == there.terms == UP.terms()
        link.send(Frame(Kind.HIDDEN, 5, 1, (Row(0, 0, 1),), (b"12345678",)))
        got = there.recv(place_afresh(there.terms))
        assert bytes(got.payload[0]) == b"12345678"
        link.close()
        with pytest.raises(LinkClosed):
            there.recv(place_afresh(there.terms))


def test_smaller_limits_of_the_answer_hold_on_both_sides():
    smaller = dataclasses.replace(LIMITS, max_step_tokens=8)
    with Worker(lambda hello: smaller) as worker:
        link = connect(worker.address, UP, 20)
        _, there = worker.link()
        assert link.terms.limits == there.terms.limits == smaller
        link.close()


def test_refused_dialler_is_told_why():
    with Worker(lambda hello: Refusal(f"stage {hello.stage} has its upstream link already")) as worker:
        with pytest.raises(LinkBroken, match="refused the link: stage 1 has its upstream link already"):
            connect(worker.address, UP, 20)
        assert worker.links.empty()


def test_head_opens_its_ring_to_one_worker():
    up, down = dataclasses.replace(UP, stage=0), dataclasses.replace(UP, stage=0, role=Role.DOWNSTREAM)
    with Worker() as worker:
        ring = TcpRing.connect(worker.address, up, worker.address, down, 20)
        links = dict((hello.role, link) for hello, link in (worker.link(), worker.link()))
        ring.send(Frame(Kind.TOKENS, 5, 1, (Row(0, 0, 1),), (bytes(4),)))
        got = links[Role.UPSTREAM].recv(place_afresh(up.terms()))
        links[Role.DOWNSTREAM].send(Frame(Kind.CANDIDATES, 5, 1, got.rows))
        frames = []
        while not frames:
            frames += ring.poll(20)
        assert [frame.step for frame in frames] == [1]
        ring.close()


def test_ring_whose_second_end_is_refused_leaves_the_first_closed():
    up, down = dataclasses.replace(UP, stage=0), dataclasses.replace(UP, stage=0, role=Role.DOWNSTREAM)
    with Worker(lambda hello: LIMITS if hello.role is Role.UPSTREAM else Refusal("no")) as worker:
        with pytest.raises(LinkBroken, match="no"):
            TcpRing.connect(worker.address, up, worker.address, down, 20)
        _, there = worker.link()
        with pytest.raises(LinkBroken):
            there.recv(place_afresh(there.terms))


def test_nothing_listening_is_unreachable():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(WorkerUnreachable, match=f"nothing answers at 127.0.0.1:{port}"):
        connect(Address("127.0.0.1", port), UP, 5)


def test_port_in_use_is_said():
    with Worker() as worker, pytest.raises(ConfigError, match="choose another port"):
        DataListener(worker.address, lambda hello, _peer: LIMITS, lambda hello, link: None)


def test_dialler_of_another_version_is_answered_and_knows():
    with Worker() as worker, worker.stranger() as sock:
        said = bytearray(encode_hello(UP))
        said[4] = codec.PROTOCOL + 1
        sock.sendall(said)
        answer = rest_of(sock)
        assert codec.read_header(answer).kind == Kind.FAULT
        assert b"protocol version" in answer


class Impostor:
    """A listener that answers the first dialler with given bytes."""

    def __init__(self, answer, hang=False):
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self._sock.getsockname()[:2])
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(answer, hang), daemon=True)
        self._thread.start()

    def _run(self, answer, hang):
        sock, _ = self._sock.accept()
        with sock:
            need = HELLO_BYTES
            while need:
                need -= len(sock.recv(need))
            sock.sendall(answer)
            if hang:
                self._done.wait(20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        self._sock.close()


ANSWER = encode_hello(UP)
OTHER_VERSION = ANSWER[:4] + bytes([codec.PROTOCOL + 1]) + ANSWER[5:]
OTHER_STAGE = encode_hello(dataclasses.replace(UP, stage=2))
LARGER = encode_hello(answer_to(UP, dataclasses.replace(LIMITS, slots=5), "0.1.0"))


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (OTHER_VERSION, VersionMismatch, "install the same"),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", ProtocolError, "begins with"),
        (OTHER_STAGE, ProtocolError, "another link"),
        (LARGER, ProtocolError, "larger limits"),
        (codec.plain(Kind.FAULT, 0, 0, bytes(4) + b"\xff"), ProtocolError, "UTF-8"),
        (codec.bye(5), ProtocolError, "opens with HELLO"),
        (ANSWER[:100], LinkBroken, "did not answer"),
        (b"", LinkBroken, "did not answer"),
    ],
    ids=["version", "http", "stage", "larger", "cause", "bye", "cut", "nothing"],
)
def test_answer_that_is_none_is_an_error(answer, error, words):
    with Impostor(answer) as impostor, pytest.raises(error, match=words):
        connect(impostor.address, UP, 20)


def test_worker_that_never_answers_times_out():
    with Impostor(b"", hang=True) as impostor, pytest.raises(LinkBroken, match="timed out"):
        connect(impostor.address, UP, 0.1)


def test_silent_stranger_is_dropped_at_the_deadline():
    with Worker(hello_within_s=0.05) as worker, worker.stranger() as sock:
        assert b"no HELLO in time" in rest_of(sock)


def test_stranger_that_drips_bytes_is_dropped_at_the_same_deadline():
    with Worker(hello_within_s=0.2) as worker, worker.stranger() as sock:
        dripping = True
        for byte in encode_hello(UP)[:-1]:
            try:
                sock.sendall(bytes([byte]))
            except ConnectionError:
                dripping = False
                break
            sock.settimeout(0.02)
            try:
                dripping = b"no HELLO" not in sock.recv(4096)
            except TimeoutError:
                continue
            except ConnectionError:
                dripping = False
            break
        assert not dripping


def test_unfinished_handshakes_are_bounded_and_hold_nobody_up():
    with Worker(max_unfinished=4, hello_within_s=60) as worker:
        strangers = [worker.stranger() for _ in range(12)]
        link = connect(worker.address, UP, 20)
        assert worker.link()[0] == UP
        # At most four of the strangers are still there; the oldest ones were closed, unanswered.
        assert all(rest_of(sock) == b"" for sock in strangers[:8])
        for sock in strangers:
            sock.close()
        link.close()


def test_a_thousand_malformed_hellos_change_nothing():
    dice = random.Random(3)
    good = encode_hello(UP)
    with Worker() as worker:
        for number in range(1000):
            data = bytearray(good)
            data[dice.randrange(0, 8)] ^= 1 << dice.randrange(8)
            for _ in range(number % 5):
                data[dice.randrange(len(data))] = dice.randrange(256)
            with worker.stranger() as sock:
                sock.sendall(data[: dice.choice([7, 40, 60, HELLO_BYTES])])
        link = connect(worker.address, UP, 20)
        assert worker.link()[0] == UP
        link.close()


def test_malformed_frames_on_an_admitted_link_close_it_and_not_the_port():
    with Worker() as worker:
        for number in range(100):
            with worker.stranger() as sock:
                sock.sendall(encode_hello(UP))
                _, there = worker.link()
                sock.sendall(random.Random(number).randbytes(200))
                with pytest.raises(ProtocolError):
                    there.recv(place_afresh(there.terms))
        connect(worker.address, UP, 20).close()


def test_close_ends_unfinished_handshakes_and_frees_the_port():
    worker = Worker(hello_within_s=60)
    sock = worker.stranger()
    worker.listener.close()
    worker.listener.close()
    assert rest_of(sock) == b""
    sock.close()
    DataListener(worker.address, lambda hello, _peer: LIMITS, lambda hello, link: None).close()


def test_a_crowd_from_one_host_does_not_push_out_another(monkeypatch):
    with Worker(max_unfinished=4, hello_within_s=60) as worker:
        address = (worker.address.host, worker.address.port)
        patient = worker.stranger()
        try:
            crowd = [socket.create_connection(address, 20, source_address=("127.0.0.2", 0)) for _ in range(12)]
        except OSError:
            patient.close()
            pytest.skip("this system has one loopback address")
        for sock in crowd[:8]:
            assert rest_of(sock) == b""
        patient.sendall(encode_hello(UP))
        assert worker.link()[0] == UP
        for sock in (patient, *crowd):
            sock.close()


# --- processes of one machine --------------------------------------------------------------------------------------

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has local sockets whose names are no files")


@ON_LINUX
def test_link_within_this_machine_has_no_tcp_under_it():
    with Worker() as worker:
        stream, _ = dial(worker.address, UP, 20)
        with stream:
            assert stream.family == socket.AF_UNIX


@ON_LINUX
def test_name_that_somebody_else_took_leaves_the_port():
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", port.getsockname()[1])
    with sockets.listening_here(address, 1):  # it answers nothing
        worker = DataListener(address, lambda hello, _peer: hello.limits, lambda _hello, link: link.close())
    try:
        stream, _ = dial(address, UP, 20)
        with stream:
            assert stream.family == socket.AF_INET
    finally:
        worker.close()


@ON_LINUX
def test_name_that_another_user_took_is_not_used(monkeypatch):
    with Worker() as worker:
        monkeypatch.setattr(sockets, "_CREDENTIALS", Credentials(os.getuid() + 1))
        stream, _ = dial(worker.address, UP, 20)
        with stream:
            assert stream.family == socket.AF_INET


class Credentials:
    """What the kernel would say of a peer that another user started."""

    def __init__(self, user):
        self.user, self.size = user, 12

    def unpack(self, _data):
        return 1, self.user, self.user
