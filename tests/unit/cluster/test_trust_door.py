"""The head's door over real sockets: joining, renewing, and everybody who is sent away."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
from contextlib import suppress

import pytest

from hyperlane.cluster.trust import certificates, door, door_client, worker_trust
from hyperlane.cluster.trust.credentials import NodeCredentials
from hyperlane.cluster.trust.door import JoinDoor
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.cluster.trust.node import node_identity
from hyperlane.cluster.trust.token import JoinToken
from hyperlane.core import Address
from hyperlane.errors import JoinRefused, NotTrusted, WorkerUnreachable

LOOPBACK = Address("127.0.0.1", 0)


class Cluster:
    """A head with an open door."""

    def __init__(self, folder):
        self.trust = HeadTrust(folder)
        self.joined = []
        self.door = JoinDoor(self.trust, LOOPBACK, lambda name, address: self.joined.append(name))
        self.address = self.door.address

    def token(self, uses=1, lifetime_s=600.0) -> str:
        return self.trust.create_token([self.address], lifetime_s=lifetime_s, uses=uses).encode()

    def close(self):
        self.door.close()


@pytest.fixture
def cluster(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    made = Cluster(tmp_path / "head")
    yield made
    made.close()


@pytest.fixture
def other(tmp_path):
    made = Cluster(tmp_path / "other-head")
    yield made
    made.close()


def connection(cluster) -> socket.socket:
    return socket.create_connection((cluster.address.host, cluster.address.port), 20)


def say_and_wait(sock, data) -> None:
    """Send something, or end the stream if there is nothing to send, and wait for the other side's end."""
    with suppress(OSError):  # it may have ended already
        if data:
            sock.sendall(data)
        else:
            socket.socket.shutdown(sock, socket.SHUT_WR)
    end_of(sock)


def end_of(sock) -> None:
    """Wait until the other side ends the connection."""
    sock.settimeout(20)
    with suppress(ConnectionResetError, ssl.SSLError):
        while sock.recv(4096):
            pass
    sock.close()


# --- joining -----------------------------------------------------------------------------------------------------


def test_a_token_is_exchanged_for_a_certificate_of_this_node(cluster, tmp_path):
    member = worker_trust.join(cluster.token(), tmp_path / "trust", "bench-7")
    name = member.credentials.name
    assert name.node == node_identity(tmp_path / "trust")
    assert name.cluster == cluster.trust.authority.cluster
    assert [(one.name, one.node) for one in cluster.trust.members.all()] == [("bench-7", name.node.hex())]
    assert worker_trust.joined(tmp_path / "trust").credentials == member.credentials
    assert cluster.joined == ["bench-7"]


def test_the_key_that_was_certified_never_left_the_worker(cluster, tmp_path):
    member = worker_trust.join(cluster.token(), tmp_path / "trust", "a")
    key = member.credentials.key_pem
    for path in (tmp_path / "head").rglob("*.*"):
        assert key not in path.read_bytes()


def test_joining_again_with_the_same_token_changes_nothing(cluster, tmp_path):
    word = cluster.token()
    first = worker_trust.join(word, tmp_path / "trust", "a")
    again = worker_trust.join(word, tmp_path / "trust", "a")
    assert again.credentials == first.credentials


def test_a_member_may_join_again_with_another_token(cluster, tmp_path):
    first = worker_trust.join(cluster.token(), tmp_path / "trust", "a")
    again = worker_trust.join(cluster.token(), tmp_path / "trust", "a")
    assert again.credentials.certificate.peer.serial != first.credentials.certificate.peer.serial
    assert len(cluster.trust.members.all()) == 1


def test_a_replayed_join_is_refused_and_logged_with_its_address(cluster, tmp_path, caplog):
    word = cluster.token()
    worker_trust.join(word, tmp_path / "one", "a")
    with pytest.raises(JoinRefused, match="used up"):
        worker_trust.join(word, tmp_path / "two", "b")
    assert NodeCredentials.load(tmp_path / "two" / "worker") is None
    assert any("refused 127.0.0.1:" in line and "used up" in line for line in caplog.messages)


def test_an_expired_or_revoked_token_is_refused_and_says_so(cluster, tmp_path):
    with pytest.raises(JoinRefused, match="expired"):
        worker_trust.join(cluster.token(lifetime_s=-1.0), tmp_path / "trust", "a")
    word = cluster.token()
    cluster.trust.tokens.revoke(JoinToken.decode(word).token_id.hex())
    with pytest.raises(JoinRefused, match="revoked"):
        worker_trust.join(word, tmp_path / "trust", "a")


def test_a_wrong_secret_opens_nothing_and_costs_no_use(cluster, tmp_path):
    token = JoinToken.decode(cluster.token())
    wrong = JoinToken(token.token_id, b"x" * 16, token.fingerprint, token.addresses)
    with pytest.raises(JoinRefused, match="not one of this cluster's"):
        worker_trust.join(wrong.encode(), tmp_path / "trust", "a")
    worker_trust.join(token.encode(), tmp_path / "trust", "a")


def test_the_secret_is_not_sent_to_another_clusters_head(cluster, other, tmp_path, monkeypatch):
    asked = []
    decide = JoinDoor._decide
    monkeypatch.setattr(
        JoinDoor, "_decide", lambda self, request, *rest: asked.append(request) or decide(self, request, *rest)
    )
    token = JoinToken.decode(cluster.token())
    misled = JoinToken(token.token_id, token.secret, token.fingerprint, (other.address,))
    with pytest.raises(JoinRefused, match="another cluster's head, or pretends"):
        worker_trust.join(misled.encode(), tmp_path / "trust", "a")
    assert [request.WhichOneof("ask") for request in asked] == ["authority"]


def test_an_impostor_with_the_right_authority_but_no_heads_key_gets_no_secret(cluster, tmp_path, monkeypatch):
    """The authority's certificate is public: showing it is not enough."""
    member = worker_trust.join(cluster.token(), tmp_path / "insider", "a")
    impostor = Cluster(tmp_path / "impostor")
    try:
        impostor.trust.authority.certificate = cluster.trust.authority.certificate
        impostor.trust._credentials = member.credentials  # a worker of that cluster, not its head
        token = JoinToken.decode(cluster.token())
        misled = JoinToken(token.token_id, token.secret, token.fingerprint, (impostor.address,))
        with pytest.raises(JoinRefused, match="certificate"):
            worker_trust.join(misled.encode(), tmp_path / "trust", "b")
    finally:
        impostor.close()
    cluster.trust.tokens.verify(token.token_id, token.secret, 0.0)


def test_addresses_are_tried_until_the_right_head_answers(cluster, other, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = Address("127.0.0.1", closed.getsockname()[1])
    token = JoinToken.decode(cluster.token())
    word = JoinToken(token.token_id, token.secret, token.fingerprint, (nobody, other.address, cluster.address)).encode()
    assert worker_trust.join(word, tmp_path / "trust", "a").credentials.cluster == cluster.trust.authority.cluster


def test_where_nothing_answers_every_address_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = Address("127.0.0.1", closed.getsockname()[1])
    word = JoinToken(b"i" * 8, b"s" * 16, b"f" * 32, (nobody,)).encode()
    with pytest.raises(WorkerUnreachable, match=str(nobody)):
        worker_trust.join(word, tmp_path / "trust", "a")


# --- identities --------------------------------------------------------------------------------------------------


def test_a_token_does_not_make_one_node_into_another(cluster, tmp_path):
    victim = worker_trust.join(cluster.token(), tmp_path / "victim", "victim").credentials.name.node
    with pytest.raises(JoinRefused, match=r"is a member already \(victim\)"):
        door_client.join(JoinToken.decode(cluster.token()), victim, "thief")
    with pytest.raises(JoinRefused, match="head's own machine"):
        door_client.join(JoinToken.decode(cluster.token()), cluster.trust.node, "thief")


def test_a_removed_node_joins_again_only_with_a_new_token(cluster, tmp_path):
    word = cluster.token(uses=5)
    worker_trust.join(word, tmp_path / "trust", "a")
    cluster.trust.remove_node("a")
    (tmp_path / "trust" / "worker" / "door.json").unlink()
    with pytest.raises(JoinRefused, match="revoked"):
        worker_trust.join(word, tmp_path / "trust", "a")
    again = worker_trust.join(cluster.token(), tmp_path / "trust", "a")
    cluster.trust.check(again.credentials.certificate.peer)


# --- renewing ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ageing(cluster, tmp_path, monkeypatch):
    """A member whose certificate should be renewed by now."""
    monkeypatch.setattr(certificates, "NODE_DAYS", 20)
    member = worker_trust.join(cluster.token(), tmp_path / "trust", "a")
    monkeypatch.undo()
    return member


def test_a_certificate_is_renewed_with_a_new_key(cluster, ageing, tmp_path):
    before = ageing.credentials
    assert ageing.renew()
    assert not ageing.renew()
    assert ageing.credentials.name == before.name
    assert ageing.credentials.key_pem != before.key_pem
    assert worker_trust.joined(tmp_path / "trust").credentials == ageing.credentials
    cluster.trust.check(ageing.credentials.certificate.peer)


def test_a_removed_node_gets_no_other_certificate(cluster, ageing):
    cluster.trust.remove_node("a")
    with pytest.raises(NotTrusted, match="was removed"):
        ageing.renew()


def test_a_node_that_is_removed_while_it_renews_gets_nothing(cluster, ageing, monkeypatch):
    """Between the look at the certificate and the new entry the node is removed."""
    real = cluster.trust.authority.issue

    def removed_meanwhile(name, public):
        cluster.trust.remove_node("a")
        return real(name, public)

    monkeypatch.setattr(cluster.trust.authority, "issue", removed_meanwhile)
    with pytest.raises(JoinRefused, match="no member"):
        ageing.renew()
    assert cluster.trust.members.of(ageing.credentials.name.node) is None


def test_two_machines_that_join_at_once_as_one_node_are_not_both_let_in(cluster, tmp_path, monkeypatch):
    token, node = JoinToken.decode(cluster.token(uses=5)), node_identity(tmp_path / "copied")
    spend = cluster.trust.tokens.spend

    def joined_meanwhile(*args):
        monkeypatch.setattr(cluster.trust.tokens, "spend", spend)
        door_client.join(token, node, "first")
        return spend(*args)

    monkeypatch.setattr(cluster.trust.tokens, "spend", joined_meanwhile)
    with pytest.raises(JoinRefused, match=r"is a member already \(first\)"):
        door_client.join(token, node, "second")


def test_an_identity_whose_certificates_have_all_ended_is_free_again(cluster, tmp_path, monkeypatch):
    node = node_identity(tmp_path / "copied")
    monkeypatch.setattr(certificates, "NODE_DAYS", 0)
    door_client.join(JoinToken.decode(cluster.token()), node, "before")
    monkeypatch.undo()
    door_client.join(JoinToken.decode(cluster.token()), node, "after")
    assert [one.name for one in cluster.trust.members.all()] == ["after"]


def test_who_shows_no_certificate_gets_no_other_one(cluster, tmp_path):
    from hyperlane.cluster.pb import control_pb2 as pb

    context = door_client.bare_context(ssl.PROTOCOL_TLS_CLIENT, cluster.trust.authority.certificate)
    ask = pb.DoorRequest(renew=pb.RenewRequest(request=certificates.new_request(certificates.new_key())))
    with pytest.raises(JoinRefused, match="must show the old one"):
        door_client._ask(cluster.address, ask, context, cluster.trust.authority.certificate)


def test_renewal_goes_on_after_a_head_that_was_away(ageing, tmp_path, caplog):
    ageing._door = (Address("127.0.0.1", 9),)
    renewal = worker_trust.Renewal(ageing, lambda: None, every_s=0.01)
    renewal.close()
    assert any("could not be renewed" in line for line in caplog.messages)


# --- strangers ---------------------------------------------------------------------------------------------------


def tls(cluster, **versions) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, version in versions.items():
        setattr(context, name, version)
    return context.wrap_socket(connection(cluster))


def test_strangers_of_every_kind_are_logged_with_their_address_and_leave_the_door_open(
    cluster, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(door, "REQUEST_WITHIN_S", 1.0)
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 300, bytes(64)):
        say_and_wait(connection(cluster), data)
    for data in (b"", struct.pack(">I", 1 << 30), struct.pack(">I", 4) + b"\xff" * 4, struct.pack(">I", 0), b"\x00"):
        say_and_wait(tls(cluster), data)
    assert sum("refused 127.0.0.1:" in line for line in caplog.messages) >= 5
    assert worker_trust.join(cluster.token(), tmp_path / "trust", "a")


def test_a_strangers_words_write_no_lines_of_their_own_into_the_log(cluster, caplog):
    from hyperlane.cluster.pb import control_pb2 as pb

    evil = pb.DoorRequest(version=pb.Version(protocol=99, hyperlane="1\n\x1b[31mCRITICAL all is lost"))
    data = evil.SerializeToString()
    say_and_wait(tls(cluster), struct.pack(">I", len(data)) + data)
    assert any("all is lost" in line for line in caplog.messages)
    assert not any("\n" in line or "\x1b" in line for line in caplog.messages)


def test_the_door_speaks_tls_1_3_alone(cluster):
    with pytest.raises(ssl.SSLError):
        tls(cluster, maximum_version=ssl.TLSVersion.TLSv1_2)


def test_a_certificate_of_another_cluster_is_refused_at_the_door(cluster, other, tmp_path):
    foreign = worker_trust.join(other.token(), tmp_path / "foreign", "f").credentials
    with pytest.raises((JoinRefused, WorkerUnreachable, NotTrusted)):
        door_client.renew((cluster.address,), foreign)


def test_a_host_that_fails_too_often_is_not_listened_to(cluster, tmp_path, monkeypatch):
    cluster.door._strangers = door.Strangers(burst=2, forgiven_per_s=0.0)
    token = JoinToken.decode(cluster.token())
    wrong = JoinToken(token.token_id, b"x" * 16, token.fingerprint, token.addresses).encode()
    for _ in range(2):
        with pytest.raises(JoinRefused):
            worker_trust.join(wrong, tmp_path / "trust", "a")
    with pytest.raises((WorkerUnreachable, JoinRefused), match="not found"):
        worker_trust.join(token.encode(), tmp_path / "trust", "a")


def test_only_so_many_of_one_host_are_at_the_door_and_none_for_long(cluster, monkeypatch, caplog):
    monkeypatch.setattr(door, "HANDSHAKE_WITHIN_S", 0.3)
    crowd = [connection(cluster) for _ in range(door.MAX_PER_HOST + 4)]
    for sock in crowd:
        end_of(sock)
    assert sum("taking" in line or "timed out" in line for line in caplog.messages) == door.MAX_PER_HOST


def test_stopping_ends_who_is_at_the_door(tmp_path):
    made = Cluster(tmp_path)
    sock = connection(made)
    made.close()
    end_of(sock)
