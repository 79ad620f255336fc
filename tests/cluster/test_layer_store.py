"""Layers between real processes: killed at a random moment and taken up, cached for good, given to other workers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hyperlane import config
from hyperlane.cluster.announce import Announcement, Child
from hyperlane.core import Address
from hyperlane.models.weights import TensorInfo
from hyperlane.node import start_serving
from hyperlane.store.pieces import PIECE_BYTES
from hyperlane.store.tensor_store import TensorStore
from hyperlane.testing.layer_transfer import MODEL, fetch_command, fill, read_result, save_places, server_command
from hyperlane.testing.shaper import Cable, Shaper

TOY = (sys.executable, str(Path(__file__).with_name("toy_worker.py")))
WITHIN_S = 60.0
TENSORS, PIECES = 3, 5
NBYTES = TENSORS * PIECES * PIECE_BYTES


# --- one transfer --------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path):
    """A peer that has random tensors, behind a cable on which they take some seconds; their list."""
    infos = [TensorInfo(f"t{number}", (PIECES * PIECE_BYTES,), "I8", PIECES * PIECE_BYTES) for number in range(TENSORS)]
    save_places(tmp_path / "places", fill(tmp_path / "theirs", infos))
    command = server_command(tmp_path / "theirs", Address("127.0.0.1", 0))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        peer = Announcement.read(process.stdout.readline()).address
        with Shaper(peer, Cable(rate_mbit=300.0)) as shaper:
            yield shaper.address
    finally:
        process.communicate()


def recorded(store: Path) -> int:
    """Pieces that are on disk in unfinished or whole tensors."""
    lines = sum(path.read_bytes().count(b"\n") - 1 for path in store.rglob("*.pieces"))
    return lines + PIECES * len(list(store.rglob("*.bin")))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_transfer_killed_at_a_random_moment_goes_on_where_it_was(served, tmp_path, seed):
    mine, kill_at = tmp_path / "mine", random.Random(seed).randrange(1, TENSORS * PIECES - 2)
    command = fetch_command(mine, tmp_path / "places", [served])
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        end_s = time.monotonic() + WITHIN_S
        while recorded(mine) < kill_at:
            assert time.monotonic() < end_s
            assert killed.poll() is None
            time.sleep(0.002)
    finally:
        killed.kill()
        killed.wait()
    had = recorded(mine)
    assert kill_at <= had < TENSORS * PIECES
    ran = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=True)
    moved = read_result(ran.stdout)
    assert moved.sources == {"cache": had * PIECE_BYTES, "peer": NBYTES - had * PIECE_BYTES}
    theirs, ours = TensorStore(tmp_path / "theirs"), TensorStore(mine)
    for name in theirs.digests(MODEL):
        assert ours.path(MODEL, name).read_bytes() == theirs.path(MODEL, name).read_bytes()
    assert not list(mine.rglob("*.part"))


# --- workers -------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path):
    """Starts toy workers without the model's file, each with a home of its own by name."""
    children: list[Child] = []

    def start(name: str) -> tuple[Address, Child]:
        own = {"HYPERLANE_HOME": str(tmp_path / name), "HYPERLANE_TEST_NO_FILES": "1"}
        log = tmp_path / f"{name}-{len(children)}.log"
        child = Child([*TOY, "--listen", "127.0.0.1:0", "--announce"], log, {**os.environ, **own})
        children.append(child)
        return child.announcement(time.monotonic() + WITHIN_S).address, child

    yield start
    for child in children:
        child.stop(time.monotonic() + 10)
    assert not [one for one in psutil.Process().children(recursive=True) if "layers.server" in " ".join(one.cmdline())]


def sources_of_a_start(model: str, *workers: Address) -> dict[int, dict[str, int]]:
    """Bring a pipeline up and down; how much each worker got from where, by its port."""
    found: dict[int, dict[str, int]] = {address.port: {} for address in workers}

    def report(progress) -> None:
        for port, sources in found.items():
            if progress.who.endswith(f":{port}") and progress.sources:
                sources.clear()
                sources.update(progress.sources)

    settings = config.load(config.ServeConfig, model=model, workers=workers, slots=2, use="all")
    with start_serving(settings, report):
        pass
    return found


def test_a_second_start_of_a_worker_needs_no_byte(tiny_model, worker):
    address, child = worker("a")
    first = sources_of_a_start(tiny_model, address)[address.port]
    assert set(first) == {"head"}
    child.stop(time.monotonic() + 10)
    again, _ = worker("a")
    assert sources_of_a_start(tiny_model, again)[again.port] == {"cache": first["head"]}


def test_a_worker_gets_layers_from_a_peer_that_has_them(tiny_model, worker):
    first, _ = worker("a")
    sources_of_a_start(tiny_model, first)
    second, _ = worker("b")
    found = sources_of_a_start(tiny_model, second, first)
    assert set(found[first.port]) == {"cache"}
    assert found[second.port]["peer"] > 0  # the head may help
