"""Layers over a shaped cable between machines of their own, encrypted: how much of the cable a transfer uses."""

from __future__ import annotations

import os

import pytest

from hyperlane.cluster.announce import Announcement
from hyperlane.cluster.trust import old_tls
from hyperlane.core import Address, NodeId
from hyperlane.testing.layer_transfer import (
    fetch_command,
    fill,
    layers_of_8b,
    read_result,
    save_places,
    server_command,
)
from hyperlane.testing.trust import TrustedPair
from hyperlane.wire.peer import NodeRole

MBIT = 200
SHARE = 0.8
TIMEOUT_S = 100.0


@pytest.fixture
def cable(lan, tmp_path):
    """A worker that has a layer of 8B shape, and another one on a slow cable: the command with which it fetches."""
    pair = TrustedPair(tmp_path / "trust")
    other = pair.credentials(NodeRole.WORKER, tmp_path / "trust" / "other", b"o" * 16).file.parent
    save_places(tmp_path / "tensors.json", fill(tmp_path / "theirs", layers_of_8b(1)))
    environ = {**os.environ, **old_tls.VARIABLES}
    giver, taker = lan.host("giver", rate=f"{MBIT}mbit"), lan.host("taker", rate=f"{MBIT}mbit")
    listen = Address(giver.address, 7422)
    server = giver.start(server_command(tmp_path / "theirs", listen, tmp_path / "trust" / "worker"), environ)
    peer = Announcement.read(server.stdout.readline().encode()).address
    command = fetch_command(tmp_path / "mine", tmp_path / "tensors.json", [peer], other, NodeId(b"w" * 16))
    return lambda: read_result(taker.run(command, environ, TIMEOUT_S))


def test_a_transfer_uses_four_fifths_of_the_cable_and_a_second_start_none_of_it(cable):
    first = cable()
    assert first.sources == {"peer": first.nbytes}
    assert first.nbytes / first.seconds >= SHARE * MBIT * 1e6 / 8
    assert cable().sources == {"cache": first.nbytes}
