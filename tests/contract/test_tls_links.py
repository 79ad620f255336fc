"""Whom an encrypted data port lets in, over real sockets, and whom a stage's plan names."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest

from hyperlane.core import Address, ElementType, Epoch, HeadId, NodeId, Precision
from hyperlane.errors import HyperlaneError, LinkBroken, NotTrusted
from hyperlane.stage.host import StageHost
from hyperlane.stage.orders import LinkPeers, LoadOrder, WeightSources
from hyperlane.stage.terms import hello_to
from hyperlane.testing.fake_engine import toy_engine
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs
from hyperlane.testing.trust import TrustedPair, anybody
from hyperlane.wire.dial import connect, dial
from hyperlane.wire.frame import Hello, Role
from hyperlane.wire.limits import Limits
from hyperlane.wire.listener import DataListener
from hyperlane.wire.peer import NodeRole
from hyperlane.wire.probe import measure_path
from hyperlane.wire.ring import TcpRing

LOOPBACK = Address("127.0.0.1", 0)
LIMITS = Limits(max_rows=4, max_step_tokens=64, slots=4, context=256, vocab=300, token_bytes=8)
UP = Hello(Epoch(HeadId(b"h" * 16), 5), 1, Role.UPSTREAM, LIMITS, ElementType.F32, Precision.RAW, 2, "0.1.0")
SPECS = toy_specs(toy_plan(toy_facts(), stages=2))
TIMEOUT_S = 20.0


pytestmark = pytest.mark.usefixtures("heard")


# --- the data port -----------------------------------------------------------------------------------------------


@pytest.fixture
def data_port(pair):
    """A data port that admits everybody whose certificate is right, and keeps who came."""
    came = []

    def admit(hello, peer):
        came.append(peer)
        return hello.limits

    listener = DataListener(LOOPBACK, admit, lambda hello, link: link.close(), tls=pair.server())
    listener.came = came
    yield listener
    listener.close()


def dialled(port, tls):
    connect(port.address, UP, TIMEOUT_S, tls=tls).close()


def test_who_shows_a_certificate_of_the_cluster_is_known_by_name(pair, data_port):
    dialled(data_port, pair.client())
    assert [peer.name for peer in data_port.came] == [pair.head.credentials.name]


def test_a_plain_text_dialler_is_refused_and_logged_with_its_address(data_port, caplog):
    with pytest.raises((LinkBroken, HyperlaneError)):
        dialled(data_port, None)
    assert data_port.came == []
    assert any("127.0.0.1:" in line and "does not speak TLS" in line for line in caplog.messages)


def test_a_certificate_of_another_cluster_is_refused_by_both_sides(pair, stranger, data_port, caplog):
    with pytest.raises(NotTrusted, match="not one of this cluster"):
        dialled(data_port, stranger.client())
    # Even a dialler that trusts this cluster: what it shows is signed by nobody the worker knows.
    trusting = stranger.client()
    trusting.context.load_verify_locations(cadata=pair.head.authority.certificate.pem.decode())
    with pytest.raises(NotTrusted, match="does not trust us"):
        dialled(data_port, replace(trusting, server_name=pair.client().server_name))
    assert data_port.came == []
    assert any("is no link" in line for line in caplog.messages)


def test_a_dialler_without_certificate_is_refused(pair, data_port):
    tls = pair.client()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pair.head.authority.certificate.pem.decode())
    with pytest.raises(NotTrusted, match="asks for a certificate"):
        dialled(data_port, replace(tls, context=context))


def test_tls_1_2_is_refused(pair, data_port):
    tls = pair.client()
    tls.context.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(NotTrusted, match=r"TLS 1\.3"):
        dialled(data_port, tls)


def test_only_who_shows_a_certificate_of_the_cluster_measures_a_path(pair, stranger, data_port):
    assert measure_path(data_port.address, UP.epoch.head, pair.client()).rtt_s > 0
    for tls, error in ((stranger.client(), NotTrusted), (None, HyperlaneError)):
        with pytest.raises(error):
            measure_path(data_port.address, UP.epoch.head, tls)
    assert data_port.came == [], "a measured path is no link"


def test_who_was_removed_measures_no_path(tmp_path):
    pair = TrustedPair(tmp_path)
    with closing(DataListener(LOOPBACK, nobody, nobody, tls=pair.server())) as listener:
        pair.worker.tell_revoked([pair.head.credentials.certificate.peer.serial])
        with pytest.raises(LinkBroken, match="was removed"):
            measure_path(listener.address, UP.epoch.head, pair.client())


def nobody(*_who: object) -> None:
    raise AssertionError("a measured path was taken for a link")


def test_a_worker_is_dialled_as_exactly_the_node_that_the_plan_names(pair, data_port):
    dialled(data_port, pair.client(pair.worker.credentials.name.node))
    with pytest.raises(NotTrusted, match="ostname"):
        dialled(data_port, pair.client(NodeId(b"x" * 16)))


def test_a_head_is_not_taken_for_a_worker(pair):
    """A stage that dials the next one must not be led to anything else of the cluster."""
    head = pair.head.credentials.server_tls(anybody)
    with (
        closing(
            DataListener(LOOPBACK, lambda hello, _peer: hello.limits, lambda _hello, link: link.close(), tls=head)
        ) as listener,
        pytest.raises(NotTrusted, match="ostname"),
    ):
        dialled(listener, pair.client())


def test_a_certificate_that_was_taken_back_is_refused_by_either_side(tmp_path):
    pair = TrustedPair(tmp_path)
    listener = DataListener(
        LOOPBACK, lambda hello, _peer: hello.limits, lambda _hello, link: link.close(), tls=pair.server()
    )
    with closing(listener):
        dialled(listener, pair.client())
        pair.worker.tell_revoked([pair.head.credentials.certificate.peer.serial])
        with pytest.raises(LinkBroken, match="was removed"):
            dialled(listener, pair.client())
        pair.head.remove_node("worker")
        with pytest.raises(NotTrusted, match="was removed"):
            dialled(listener, pair.client())


def test_an_expired_certificate_is_refused(pair, data_port, monkeypatch, tmp_path):
    from hyperlane.cluster.trust import certificates

    monkeypatch.setattr(certificates, "NODE_DAYS", 0)
    expired = pair.credentials(NodeRole.HEAD, tmp_path, b"e" * 16)
    with pytest.raises(NotTrusted, match="expired"):
        dialled(data_port, expired.client_tls(NodeRole.WORKER, None, anybody))


def test_strangers_who_say_nothing_do_not_keep_anybody_out(pair):
    listener = DataListener(
        LOOPBACK,
        lambda hello, _peer: hello.limits,
        lambda _hello, link: link.close(),
        tls=pair.server(),
        max_unfinished=4,
        hello_within_s=0.5,
    )
    with closing(listener):
        address = (listener.address.host, listener.address.port)
        crowd = [socket.create_connection(address, TIMEOUT_S) for _ in range(8)]
        for sock in crowd:  # all are sent away, the last ones when their time is over
            sock.settimeout(TIMEOUT_S)
            while sock.recv(4096):
                pass
            sock.close()
        dialled(listener, pair.client())


def test_a_dialler_that_meets_silence_gives_up_in_time(pair):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(LinkBroken, match="timed out"):
            connect(Address("127.0.0.1", silent.getsockname()[1]), UP, 0.3, tls=pair.client())
        assert time.monotonic() - began < TIMEOUT_S


def test_a_ring_is_encrypted_at_both_ends(pair, data_port):
    node = pair.worker.credentials.name.node
    ring = TcpRing.connect(
        data_port.address,
        replace(UP, stage=0),
        data_port.address,
        replace(UP, role=Role.DOWNSTREAM),
        TIMEOUT_S,
        tls=(pair.client(node), pair.client(node)),
    )
    ring.close()
    assert len(data_port.came) == 2
    assert None not in data_port.came


def test_what_crosses_the_wire_does_not_show_what_was_sent(pair, data_port):
    """The HELLO of a link, as anybody on the network would see it."""
    seen = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as relay:
        here = Address("127.0.0.1", relay.getsockname()[1])

        def listen_in():
            client, _ = relay.accept()
            server = socket.create_connection((data_port.address.host, data_port.address.port))
            with client, server:
                ends = {client: server, server: client}
                for sock in ends:
                    sock.settimeout(0.01)
                while ends:
                    for sock in list(ends):
                        try:
                            data = sock.recv(65536)
                        except TimeoutError:
                            continue
                        except OSError:
                            return
                        if not data:
                            return
                        seen.extend(data)
                        ends[sock].sendall(data)

        thread = threading.Thread(target=listen_in)
        thread.start()
        stream, _ = dial(here, UP, TIMEOUT_S, tls=pair.client())
        stream.close()
        thread.join()
    assert len(seen) > 1000
    assert b"HYPL" not in seen
    assert UP.epoch.head not in seen


# --- whom the plan names -----------------------------------------------------------------------------------------


def host_with_both_stages(peers) -> StageHost:
    host = StageHost("w", toy_engine, lambda *_: None, free_memory=lambda: 1 << 30, memory_limit=1 << 30)
    for spec in SPECS:
        host.load(LoadOrder(spec, WeightSources(), 100, 0, 0, peers), lambda progress: None)
    return host


@pytest.mark.parametrize(
    ("stage", "role", "allowed"),
    [
        (0, Role.UPSTREAM, "head"),
        (1, Role.UPSTREAM, "before"),
        (1, Role.DOWNSTREAM, "head"),
        (0, Role.DOWNSTREAM, None),
    ],
)
def test_a_link_is_opened_by_whom_the_plan_names_and_by_nobody_else(pair, tmp_path, stage, role, allowed):
    head = pair.head.credentials.certificate.peer
    peers = {
        "head": head,
        "before": pair.worker.credentials.certificate.peer,
        "other": pair.credentials(NodeRole.WORKER, tmp_path / "other", b"o" * 16).certificate.peer,
        "other head": pair.credentials(NodeRole.HEAD, tmp_path / "head2", b"2" * 16).certificate.peer,
        "plain": None,
    }
    for name, peer in peers.items():
        host = host_with_both_stages(LinkPeers(head.name.node, peers["before"].name.node))
        engine = ElementType.F32
        answer = host.admit(hello_to(SPECS[stage], role, engine), peer)
        assert isinstance(answer, Limits) == (name == allowed), f"{name}: {answer}"
        host.close()


def test_a_stage_of_plain_links_takes_no_certificate_and_a_plain_dialler(pair):
    host = host_with_both_stages(None)
    hello = hello_to(SPECS[0], Role.UPSTREAM, ElementType.F32)
    assert not isinstance(host.admit(hello, pair.head.credentials.certificate.peer), Limits)
    assert isinstance(host.admit(hello, None), Limits)
    host.close()
