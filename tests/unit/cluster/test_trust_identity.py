"""Node identities, private files, authorities and certificates on disk."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
from datetime import UTC, datetime, timedelta

import pytest

from hyperlane.cluster.trust import certificates
from hyperlane.cluster.trust.authority import Authority
from hyperlane.cluster.trust.binding import Machine, this_machine
from hyperlane.cluster.trust.credentials import NodeCredentials
from hyperlane.cluster.trust.files import write_private
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.cluster.trust.node import node_identity
from hyperlane.cluster.trust.worker_trust import joined
from hyperlane.core import ClusterId, NodeId
from hyperlane.errors import DuplicateIdentity, NotTrusted
from hyperlane.testing.trust import TrustedPair
from hyperlane.wire.peer import NodeRole, PeerName

HERE, THERE = Machine("machine-id", "aaaa"), Machine("machine-id", "bbbb")
posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")


# --- identity ----------------------------------------------------------------------------------------------------


def test_a_node_keeps_its_id_on_its_machine(tmp_path):
    first = node_identity(tmp_path, HERE)
    assert len(first) == 16
    assert node_identity(tmp_path, HERE) == first


def test_two_state_directories_are_two_nodes(tmp_path):
    assert node_identity(tmp_path / "a", HERE) != node_identity(tmp_path / "b", HERE)


def test_a_copied_state_directory_is_noticed_and_the_message_says_what_to_do(tmp_path):
    node = node_identity(tmp_path / "state" / "trust", HERE)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    with pytest.raises(DuplicateIdentity) as error:
        node_identity(tmp_path / "copy" / "trust", THERE)
    assert node.hex()[:8] in str(error.value)
    assert f"delete {tmp_path / 'copy' / 'trust'}" in str(error.value)
    assert "--join TOKEN" in str(error.value)


def test_a_machine_that_tells_nothing_of_itself_accuses_nobody(tmp_path):
    node = node_identity(tmp_path, HERE)
    assert node_identity(tmp_path, Machine("product-uuid", "zzzz")) == node


def test_the_identity_file_does_not_tell_the_machines_own_id(tmp_path):
    node_identity(tmp_path, Machine("machine-id", "secret-machine-id"))
    assert b"secret-machine-id" not in (tmp_path / "node.json").read_bytes()


def test_what_the_user_says_of_a_machine_goes_before_what_the_system_says():
    assert this_machine("rack-7") == Machine("named", "rack-7")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"node": "00", "source": "", "machine": ""}', b"\xff"])
def test_a_damaged_identity_is_named(tmp_path, content):
    write_private(tmp_path / "node.json", content)
    with pytest.raises(NotTrusted, match=r"node\.json is damaged"):
        node_identity(tmp_path, HERE)


# --- files -------------------------------------------------------------------------------------------------------


@posix
def test_every_file_of_a_cluster_is_for_its_owner_alone(tmp_path):
    pair = TrustedPair(tmp_path)
    pair.worker.tell_revoked([5])
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert {path.name for path in files} >= {"authority.pem", "node.pem", "node.json", "members.json", "revoked.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "head" / "authority").stat().st_mode) == 0o700


@posix
@pytest.mark.parametrize("file", ["authority/authority.pem", "head/node.pem", "node.json"])
def test_a_file_that_others_may_read_is_not_used(tmp_path, file):
    HeadTrust(tmp_path)
    (tmp_path / file).chmod(0o640)
    with pytest.raises(NotTrusted, match="chmod 600"):
        HeadTrust(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_private(tmp_path / "key", b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_private(tmp_path / "key", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key").read_bytes() == b"old"


# --- authority and certificates ----------------------------------------------------------------------------------


def test_a_cluster_keeps_its_authority(tmp_path):
    first = HeadTrust(tmp_path)
    again = HeadTrust(tmp_path)
    assert (first.is_new, again.is_new) == (True, False)
    assert again.authority.certificate == first.authority.certificate
    assert again.credentials.certificate.peer == first.credentials.certificate.peer


def test_no_authority_is_made_for_who_only_looks(tmp_path):
    with pytest.raises(NotTrusted, match="hyperlane serve"):
        Authority(tmp_path, make=False)


def test_a_certificate_names_cluster_role_and_node_as_uri_and_as_dns(tmp_path):
    pair = TrustedPair(tmp_path)
    name = pair.worker.credentials.name
    assert (name.role, name.node, name.cluster) == (NodeRole.WORKER, b"w" * 16, pair.head.authority.cluster)
    assert PeerName.parse(name.uri) == name
    assert all(dns.endswith(f"worker.{name.cluster.hex()}.hyperlane.internal") for dns in name.dns_names)


@pytest.mark.parametrize(
    "uri", ["", "https://example.org", "hyperlane://00/head/00", f"hyperlane://{'0' * 32}/root/{'0' * 32}"]
)
def test_a_name_that_is_no_nodes_is_refused(uri):
    with pytest.raises(NotTrusted):
        PeerName.parse(uri)


def test_a_certificate_is_renewed_before_it_ends_and_valid_on_a_clock_that_is_behind(tmp_path):
    certificate = HeadTrust(tmp_path).credentials.certificate
    now = datetime.now(UTC)
    assert certificate.since < now - timedelta(minutes=50)
    assert not certificate.needs_renewal(now)
    assert certificate.needs_renewal(certificate.until - timedelta(days=59))
    assert not certificate.needs_renewal(certificate.until - timedelta(days=61))


def test_a_head_renews_its_own_certificate(tmp_path, monkeypatch):
    monkeypatch.setattr(certificates, "NODE_DAYS", 30)
    head = HeadTrust(tmp_path)
    monkeypatch.undo()
    assert head.credentials.certificate.until > datetime.now(UTC) + timedelta(days=100)


def test_a_request_must_be_signed_with_a_key_of_our_curve():
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    other = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    der = other.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    good = certificates.new_request(certificates.new_key())
    forged = good[:-1] + bytes([good[-1] ^ 1])
    for request in (der, forged, b"", b"x" * 100, good + b"x" * 5000):
        with pytest.raises(NotTrusted):
            certificates.requested_key(request)
    certificates.requested_key(good)


def test_credentials_whose_parts_do_not_belong_together_are_refused(tmp_path):
    one, two = TrustedPair(tmp_path / "1"), TrustedPair(tmp_path / "2")
    ours, theirs = one.worker.credentials, two.worker.credentials
    for content in (
        ours.key_pem + theirs.certificate.pem + ours.authority.pem,
        theirs.key_pem + ours.certificate.pem + ours.authority.pem,
        ours.key_pem + ours.certificate.pem + theirs.authority.pem,
        ours.key_pem + ours.certificate.pem,
        ours.file.read_bytes()[:300],
        b"",
    ):
        write_private(ours.file, content)
        with pytest.raises(NotTrusted, match="damaged"):
            NodeCredentials.load(ours.file.parent)


def test_the_key_is_not_shown_where_credentials_are_logged(tmp_path):
    assert "PRIVATE" not in repr(TrustedPair(tmp_path).worker.credentials)


def test_an_expired_certificate_is_told_at_the_start(tmp_path, monkeypatch):
    node = node_identity(tmp_path)
    monkeypatch.setattr(certificates, "NODE_DAYS", 0)
    pair = TrustedPair.__new__(TrustedPair)
    pair.head = HeadTrust(tmp_path / "cluster")
    pair.credentials(NodeRole.WORKER, tmp_path / "worker", node)
    with pytest.raises(NotTrusted, match="expired"):
        joined(tmp_path)


def test_another_nodes_certificate_is_told_at_the_start(tmp_path):
    node_identity(tmp_path)
    pair = TrustedPair(tmp_path / "cluster")
    pair.credentials(NodeRole.WORKER, tmp_path / "worker", b"x" * 16)
    with pytest.raises(NotTrusted, match="another node's"):
        joined(tmp_path)


def test_an_authority_signs_for_its_own_cluster_only(tmp_path):
    head = HeadTrust(tmp_path)
    name = PeerName(ClusterId(b"x" * 16), NodeRole.WORKER, NodeId(b"n" * 16))
    with pytest.raises(NotTrusted, match="another cluster"):
        head.authority.issue(name, certificates.new_key().public_key())


def test_contexts_speak_tls_1_3_alone_and_demand_a_certificate(tmp_path):
    pair = TrustedPair(tmp_path)
    for context in (pair.server().context, pair.client().context):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
    assert pair.client().context.check_hostname
