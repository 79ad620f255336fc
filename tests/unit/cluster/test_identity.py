"""A head's identity: kept, never shared by two living heads, and a counter that never goes back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hyperlane.cluster.identity import HeadIdentity


@pytest.fixture
def identity(tmp_path):
    made = HeadIdentity(tmp_path)
    yield made
    made.close()


def test_a_head_keeps_its_id_and_its_counter_goes_on(identity, tmp_path):
    first = [identity.next_epoch() for _ in range(3)]
    identity.close()
    again = HeadIdentity(tmp_path)
    assert again.head == identity.head
    assert again.next_epoch().counter == first[-1].counter + 1
    again.close()


def test_two_heads_at_once_are_two_heads(identity, tmp_path):
    identity.next_epoch()
    second = HeadIdentity(tmp_path)
    assert second.head != identity.head
    second.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"head": "00", "counter": 1}', b'{"head": 1}'])
def test_a_damaged_file_makes_another_head_so_that_no_epoch_comes_twice(tmp_path, content):
    first = HeadIdentity(tmp_path)
    first.next_epoch()
    first.close()
    (tmp_path / "head-0.json").write_bytes(content)
    second = HeadIdentity(tmp_path)
    assert second.head != first.head
    assert second.next_epoch().counter == 1
    second.close()


def test_an_identity_is_free_again_when_its_process_was_killed(tmp_path):
    code = (
        "import os, pathlib, sys; from hyperlane.cluster.identity import HeadIdentity;"
        "print(HeadIdentity(pathlib.Path(sys.argv[1])).next_epoch().head.hex(), flush=True); os._exit(1)"
    )
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    identity = HeadIdentity(tmp_path)
    assert identity.head.hex() == child.stdout.strip()
    identity.close()


def test_nothing_but_the_identity_is_left_on_disk(identity, tmp_path):
    identity.next_epoch()
    assert {path.name for path in tmp_path.iterdir()} == {"head-0.json", "head-0.lock"}
