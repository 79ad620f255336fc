"""Who belongs to a cluster, who was removed, and what workers know of it."""

from __future__ import annotations

import pytest

from hyperlane.cluster.trust.members import MemberStore
from hyperlane.cluster.trust.revocations import MAX_SERIALS, Revocations
from hyperlane.core import NodeId
from hyperlane.errors import NotTrusted, UsageError
from hyperlane.testing.trust import TrustedPair
from hyperlane.wire.peer import NodeRole
from hyperlane.wire.strangers import MAX_HOSTS, Strangers


@pytest.fixture
def pair(tmp_path):
    return TrustedPair(tmp_path)


def test_a_member_that_was_removed_is_refused_by_every_process(pair):
    peer = pair.worker.credentials.certificate.peer
    elsewhere = MemberStore(pair.folder / "head" / "authority" / "members.json")
    elsewhere.check(peer)
    pair.head.remove_node("worker")
    for members in (pair.head.members, elsewhere):
        with pytest.raises(NotTrusted, match="was removed"):
            members.check(peer)


def test_a_node_is_called_by_its_name_or_the_beginning_of_its_id(pair):
    with pytest.raises(UsageError, match="no node is called 'nobody'"):
        pair.head.remove_node("nobody")
    with pytest.raises(UsageError, match="no node"):
        pair.head.remove_node("7")  # too short to mean one node for sure
    assert pair.head.remove_node(pair.worker.credentials.name.node.hex()[:8])[0].name == "worker"


def test_two_nodes_of_one_name_must_be_told_apart(pair, tmp_path):
    pair.credentials(NodeRole.WORKER, tmp_path / "b" / "worker", b"b" * 16)
    with pytest.raises(UsageError, match="several nodes"):
        pair.head.remove_node("worker")


def test_a_removed_node_that_joins_again_gets_a_certificate_that_is_not_revoked(pair, tmp_path):
    old = pair.worker.credentials.certificate.peer
    pair.head.remove_node("worker")
    new = pair.credentials(NodeRole.WORKER, tmp_path / "again").certificate.peer
    pair.head.check(new)
    with pytest.raises(NotTrusted):
        pair.head.check(old)
    assert pair.head.members.of(NodeId(b"w" * 16)) is not None


def test_removed_nodes_are_forgotten_once_their_certificates_have_ended(pair, tmp_path):
    pair.head.remove_node("worker")
    until = pair.worker.credentials.certificate.until.timestamp()
    later = MemberStore(pair.folder / "head" / "authority" / "members.json", lambda: until + 1)
    assert later.revoked() == frozenset()
    later.record(pair.credentials(NodeRole.WORKER, tmp_path / "new", b"n" * 16).certificate, "new", "here")
    assert [member.name for member in later.all()] == ["new"]


def test_a_worker_keeps_what_it_was_told_and_forgets_nothing(tmp_path, pair):
    peer = pair.worker.credentials.certificate.peer
    told = Revocations(tmp_path / "revoked.json")
    told.check(peer)
    told.tell([peer.serial])
    told.tell([])
    again = Revocations(tmp_path / "revoked.json")
    for known in (told, again):
        with pytest.raises(NotTrusted, match="was removed"):
            known.check(peer)


def test_no_message_makes_a_worker_remember_without_end(tmp_path):
    with pytest.raises(NotTrusted, match="more than"):
        Revocations(tmp_path / "revoked.json").tell(range(MAX_SERIALS + 1))


def test_a_host_that_fails_again_and_again_is_barred_for_a_while_and_others_are_not():
    strangers = Strangers(burst=3, forgiven_per_s=1.0)
    assert [strangers.failed("a", 0.0) for _ in range(4)] == [False, False, True, False]
    assert strangers.barred("a", 0.5)
    assert not strangers.barred("b", 0.5)
    assert not strangers.barred("a", 1.5)


def test_strangers_are_remembered_in_bounded_memory():
    strangers = Strangers(burst=1)
    for number in range(MAX_HOSTS + 1):
        strangers.failed(f"host-{number}", 0.0)
    assert not strangers.barred("host-0", 0.0)
    assert strangers.barred(f"host-{MAX_HOSTS}", 0.0)
