"""Joining a cluster and being kept out of it: real processes on loopback, where a joined worker speaks to certificates
alone, exactly as it does to other machines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import sys
import time
from pathlib import Path

import pytest

from hyperlane import config, node
from hyperlane.cluster import rpc
from hyperlane.cluster.announce import Child
from hyperlane.cluster.pb import control_pb2 as pb
from hyperlane.cluster.pb.control_pb2_grpc import WorkerStub
from hyperlane.cluster.trust import grpc_tls, preflight
from hyperlane.cluster.trust.credentials import NodeCredentials
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.core import Address, ElementType, Epoch, HeadId, Precision
from hyperlane.errors import HyperlaneError, LinkBroken, NotTrusted
from hyperlane.testing.program import Program
from hyperlane.testing.trust import anybody
from hyperlane.wire.dial import connect
from hyperlane.wire.frame import Hello, Role
from hyperlane.wire.limits import Limits
from hyperlane.wire.peer import NodeRole

QUIET = {"HYPERLANE_DISCOVERY_MDNS": "no", "HYPERLANE_JOIN_LISTEN": "127.0.0.1:0"}
TOKEN = re.compile(r"hl1[a-z2-7]+")
GREEDY = ("the ring", "--raw", "-n", "12", "-t", "0", "--json")
WITHIN_S = 60.0
UP = Hello(
    Epoch(HeadId(b"h" * 16), 5),
    0,
    Role.UPSTREAM,
    Limits(max_rows=4, max_step_tokens=64, slots=4, context=256, vocab=300, token_bytes=8),
    ElementType.F32,
    Precision.RAW,
    2,
    "0.1.0",
)


class Machines:
    """Programs of machines that have a home each, and what they said; none is left at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: list[Program] = []

    def start(self, home: str, *arguments: str, **environ: str) -> Program:
        self.programs.append(Program(*arguments, home=self.folder / home, environ={**QUIET, **environ}))
        return self.programs[-1]

    def run(self, home: str, *arguments: str, **environ: str) -> Program:
        """To its end."""
        program = self.start(home, *arguments, **environ)
        program.end_input()
        program.code = program.wait()
        return program

    def worker(self, home: str, *arguments: str, **environ: str) -> tuple[Program, Address]:
        """A worker that is ready, and where."""
        flags = ("--listen", "127.0.0.1:0", "--announce", "--threads", "1")
        program = self.start(home, "worker", *flags, *arguments, **environ)
        said = json.loads(program.wait_for("{"))
        return program, Address(said["host"], said["port"])

    def token(self, home: str, *flags: str) -> str:
        made = self.run(home, "token", "create", *flags)
        assert made.code == 0, made.stderr
        assert TOKEN.fullmatch(made.stdout.strip())
        return made.stdout.strip()

    def trust(self, home: str) -> Path:
        return self.folder / home / "state" / "trust"

    def close(self) -> None:
        for program in self.programs:
            program.__exit__(None, None, None)


class Cluster:
    """A head that serves, and two workers that have joined it; `first_token` is what the head printed."""

    def __init__(self, machines: Machines, model: str) -> None:
        self.machines, self.model = machines, model
        self.head = machines.start("head", "serve", model, "--port", "0")
        self.first_token = TOKEN.search(self.head.wait_for("hyperlane worker --join"))[0]
        joined = [machines.worker(f"w{i}", "--join", self.first_token) for i in range(2)]
        self.workers = [program for program, _ in joined]
        self.addresses = [address for _, address in joined]

    def ask(self, home: str = "head", addresses=None) -> Program:
        named = [part for address in addresses or self.addresses for part in ("--worker", str(address))]
        return self.machines.run(home, "run", self.model, *GREEDY, *named)


@pytest.fixture
def machines(tmp_path):
    made = Machines(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, tiny_model):
    """Tests that share it change nothing in it."""
    machines = Machines(tmp_path_factory.mktemp("cluster"))
    try:
        yield Cluster(machines, tiny_model)
    finally:
        machines.close()


@pytest.fixture(scope="module")
def other(tmp_path_factory, tiny_model):
    """Another cluster on the same machine, of which only the trust is needed."""
    return HeadTrust(tmp_path_factory.mktemp("other") / "state" / "trust")


# --- joining -----------------------------------------------------------------------------------------------------


def test_joined_workers_answer_over_encrypted_links_as_plain_ones_do(cluster):
    encrypted = cluster.ask()
    plain = cluster.machines.run("head", "run", cluster.model, *GREEDY, "--local-workers", "2")
    assert (encrypted.code, plain.code) == (0, 0), encrypted.stderr + plain.stderr
    there, here = json.loads(encrypted.stdout), json.loads(plain.stdout)
    assert there["answer"] == here["answer"]
    assert [stage["worker"]["control"]["port"] for stage in there["plan"]["stages"]] == [
        address.port for address in cluster.addresses
    ]


def test_the_head_lists_who_has_joined_and_with_which_token(cluster):
    nodes = json.loads(cluster.machines.run("head", "node", "list", "--json").stdout)
    tokens = json.loads(cluster.machines.run("head", "token", "list", "--json").stdout)
    assert {one["state"] for one in nodes} == {"member"}
    assert set(tokens[0]["used_by"]) == {one["node"] for one in nodes}
    assert cluster.first_token not in cluster.machines.run("head", "token", "list").stdout
    cluster.head.wait_for("joined from 127.0.0.1")


def test_a_worker_that_has_joined_starts_again_without_a_token(machines, tiny_model):
    cluster = Cluster(machines, tiny_model)
    cluster.workers[0].end_input()
    assert cluster.workers[0].wait() == 0
    _, address = machines.worker("w0")
    ran = cluster.ask(addresses=[address, cluster.addresses[1]])
    assert ran.code == 0, ran.stderr


def test_a_worker_without_the_model_gets_its_layers_encrypted(cluster, tmp_path):
    """A toy worker that pretends to have no file: what it reads must come from the head's tensor server."""
    command = [sys.executable, str(Path(__file__).with_name("toy_worker.py"))]
    token = cluster.machines.token("head")
    home = tmp_path / "toy"
    environ = {**os.environ, **QUIET, "HYPERLANE_HOME": str(home), "HYPERLANE_TEST_NO_FILES": "1"}
    child = Child([*command, "--listen", "127.0.0.1:0", "--join", token, "--announce"], tmp_path / "toy.log", environ)
    try:
        address = child.announcement(time.monotonic() + WITHIN_S).address
        ran = cluster.ask(addresses=[address])
        assert ran.code == 0, ran.stderr
        assert not Path(tmp_path / "toy.log").read_text().count("Traceback")
    finally:
        child.stop(time.monotonic() + WITHIN_S)


# --- who is kept out ---------------------------------------------------------------------------------------------


def refused(machines, home, token, words, code=5):
    """A worker that is not let in: told in one line, with nothing left behind."""
    ran = machines.run(home, "worker", "--listen", "127.0.0.1:0", "--announce", "--join", token)
    assert (ran.code, ran.stdout) == (code, ""), ran.stderr
    assert re.search(words, ran.stderr), ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.survivors() == []
    assert not (machines.trust(home) / "worker" / "node.pem").exists()


def test_tokens_that_open_nothing_are_refused_and_logged(cluster, machines, other):
    def made(*flags):
        return cluster.machines.token("head", *flags)

    used = made()
    _, _ = machines.worker("one", "--join", used)
    refused(machines, "replayed", used, "used up")
    revoked = made("--uses", "5")
    first = json.loads(cluster.machines.run("head", "token", "list", "--json").stdout)[-1]["id"]
    assert cluster.machines.run("head", "token", "revoke", first[:8]).code == 0
    refused(machines, "revoked", revoked, "revoked")
    door = Address.parse(json.loads((cluster.machines.trust("head") / "authority" / "door.json").read_text())[0])
    expired = HeadTrust(cluster.machines.trust("head")).create_token([door], lifetime_s=-1.0, uses=1).encode()
    refused(machines, "expired", expired, "expired")
    misled = other.create_token([door], lifetime_s=60.0, uses=1).encode()
    refused(machines, "misled", misled, "another cluster's head, or pretends")
    refused(machines, "typo", used[:-1] + ("a" if used[-1] != "a" else "b"), "wrong or missing")
    for words in ("used up", "revoked", "expired"):
        assert re.search(rf"the door refused 127\.0\.0\.1:\d+: .*{words}", cluster.head.stderr), cluster.head.stderr


@pytest.mark.slow
def test_a_removed_node_is_not_used_and_does_not_come_back_with_its_old_token(machines, tiny_model):
    cluster = Cluster(machines, tiny_model)
    nodes = json.loads(machines.run("head", "node", "list", "--json").stdout)
    gone = NodeCredentials.load(machines.trust("w1") / "worker").name.node.hex()
    assert gone in {one["node"] for one in nodes}
    removed = machines.run("head", "node", "remove", gone[:8])
    assert removed.code == 0, removed.stderr
    assert "whose secret it knows, is revoked" in removed.stderr
    ran = cluster.ask()
    assert ran.code == 5
    assert f"worker {gone[:8]}" in ran.stderr
    assert "was removed from the cluster" in ran.stderr
    assert cluster.ask(addresses=cluster.addresses[:1]).code == 0
    shutil.rmtree(machines.trust("w1") / "worker")
    refused(machines, "w1", cluster.first_token, "revoked")


def test_a_head_stops_using_a_node_that_is_removed_while_it_serves(machines, tiny_model, monkeypatch):
    cluster = Cluster(machines, tiny_model)
    monkeypatch.setenv("HYPERLANE_HOME", str(machines.folder / "head"))
    monkeypatch.setenv("HYPERLANE_DISCOVERY_MDNS", "no")
    settings = config.load(config.ServeConfig, model=tiny_model, workers=cluster.addresses)
    with node.start_serving(settings) as serving:
        assert serving.service.ready()
        machines.run("head", "node", "remove", NodeCredentials.load(machines.trust("w1") / "worker").name.node.hex())
        until = time.monotonic() + WITHIN_S
        while serving.service.ready():
            assert time.monotonic() < until, "it is still used"
            time.sleep(0.05)


def test_two_clusters_do_not_mix(cluster, other):
    foreign = cluster.machines.folder / "foreign"
    shutil.copytree(other.folder, foreign / "state" / "trust")
    ran = cluster.ask(home="foreign")
    assert ran.code == 5
    assert "not one of this cluster" in ran.stderr
    assert cluster.ask().code == 0


def test_a_head_without_a_cluster_cannot_use_joined_workers(cluster):
    ran = cluster.ask(home="nobody")
    assert ran.code == 5, ran.stderr
    assert "Traceback" not in ran.stderr


def test_plain_text_and_strangers_get_nowhere_at_a_joined_workers_ports(cluster, tmp_path):
    control = cluster.addresses[0]
    head = HeadTrust(cluster.machines.trust("head"))
    worker = NodeCredentials.load(cluster.machines.trust("w0") / "worker")
    insider = NodeCredentials.load(cluster.machines.trust("w1") / "worker")
    data = Address(control.host, data_port(control, head))

    with socket.create_connection((control.host, control.port), WITHIN_S) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        assert not sock.recv(4096).startswith(b"\x00\x00")  # no settings frame: nothing of gRPC was reached
    with pytest.raises(HyperlaneError):
        connect(data, UP, WITHIN_S)
    stranger = HeadTrust(tmp_path / "stranger").credentials
    for address in (control, data):
        with pytest.raises(NotTrusted):
            connect(address, UP, WITHIN_S, tls=stranger.client_tls(NodeRole.WORKER, None, anybody))
    old = head.credentials.client_tls(NodeRole.WORKER, None, anybody)
    old.context.minimum_version = old.context.maximum_version = ssl.TLSVersion.TLSv1_2
    old.context.set_alpn_protocols(["h2"])
    for address in (control, data):
        with pytest.raises((NotTrusted, LinkBroken), match=r"TLS"):
            connect(address, UP, WITHIN_S, tls=old)
    # A member, but no head: it may neither load nor open a link that no plan names.
    assert "may not call" in load_as(insider, control)
    with pytest.raises(HyperlaneError, match="is not loaded"):
        connect(data, UP, WITHIN_S, tls=insider.client_tls(NodeRole.WORKER, worker.name.node, anybody))
    log = cluster.workers[0].stderr
    assert re.search(r"data port .*: 127\.0\.0\.1:\d+ is no link: it does not speak TLS", log), log
    assert re.search(r"control port: refused ipv4:127\.0\.0\.1:\d+ .*may not call /hyperlane\.v1\.Worker/Load", log), (
        log
    )
    assert cluster.ask().code == 0


def data_port(control: Address, head: HeadTrust) -> int:
    """As the head is told."""
    import grpc

    preflight.identify(control, head, NodeRole.WORKER, WITHIN_S)
    credentials = head.credentials
    with grpc.secure_channel(
        rpc.target(control),
        grpc_tls.channel_credentials(credentials),
        options=grpc_tls.channel_options(credentials, NodeRole.WORKER, None),
    ) as channel:
        return WorkerStub(channel).Describe(pb.DescribeRequest(), timeout=WITHIN_S).data_port


def load_as(credentials: NodeCredentials, control: Address) -> str:
    """Why a Load was refused."""
    import grpc

    with grpc.secure_channel(
        rpc.target(control),
        grpc_tls.channel_credentials(credentials),
        options=grpc_tls.channel_options(credentials, NodeRole.WORKER, None),
    ) as channel:
        with pytest.raises(grpc.RpcError) as error:
            list(WorkerStub(channel).Load(pb.LoadRequest(), timeout=WITHIN_S))
        return error.value.details()


# --- machines ----------------------------------------------------------------------------------------------------


def test_a_copied_state_directory_is_reported_by_name(cluster):
    folder = cluster.machines.folder
    made, _ = cluster.machines.worker(
        "named", "--join", cluster.machines.token("head"), HYPERLANE_PATHS_MACHINE="machine-a"
    )
    made.end_input()
    made.wait()
    shutil.copytree(folder / "named", folder / "copy")
    node_id = NodeCredentials.load(folder / "copy" / "state" / "trust" / "worker").name.node.hex()[:8]
    ran = cluster.machines.run(
        "copy", "worker", "--listen", "127.0.0.1:0", "--announce", HYPERLANE_PATHS_MACHINE="machine-b"
    )
    assert ran.code == 5
    assert node_id in ran.stderr
    assert "was copied from another machine" in ran.stderr


def test_a_worker_that_has_not_joined_serves_this_machine_alone(machines):
    ran = machines.run("w", "worker", "--listen", "0.0.0.0:0", "--announce")
    assert ran.code == 2
    assert "--join TOKEN" in ran.stderr
    _, address = machines.worker("w")
    assert address.host == "127.0.0.1"


def test_local_workers_that_others_must_reach_show_the_heads_certificate(cluster, monkeypatch):
    """As when a worker of another machine is part of the plan: here one on loopback stands for it."""
    monkeypatch.setenv("HYPERLANE_HOME", str(cluster.machines.folder / "head"))
    monkeypatch.setenv("HYPERLANE_DISCOVERY_MDNS", "no")
    real = node._local_options
    monkeypatch.setattr(node, "_local_options", lambda *args, **more: real(*args, **{**more, "reached": True}))
    settings = config.load(
        config.ServeConfig, model=cluster.model, local_workers=1, threads=1, workers=cluster.addresses[:1]
    )
    with node.start_serving(settings) as serving:
        assert len(serving.plan.stages) == 2
        assert serving.service.ready()


def test_the_api_wants_a_key_where_other_machines_reach_it(machines, tiny_model):
    ran = machines.run("head", "serve", tiny_model, "--host", "0.0.0.0", "--port", "0")
    assert ran.code == 2
    assert "--api-key" in ran.stderr


def test_a_door_that_stays_closed_lets_nobody_in(machines, tiny_model):
    head = machines.start("head", "serve", tiny_model, "--port", "0", "--no-join")
    head.wait_for("ready: ")
    assert not (machines.trust("head") / "authority").exists()
    assert "--join" not in head.stderr
