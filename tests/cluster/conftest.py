"""What tests with real processes share: a tiny model, toy workers, and that nothing is left."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hyperlane.testing.tiny_models import write_tiny_model
from hyperlane.testing.toy_cluster import ToyWorkers, children

TOY = (sys.executable, str(Path(__file__).with_name("toy_worker.py")))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """The path of a small random model of four layers, whose answers are gibberish and always the same."""
    return str(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf"))


@pytest.fixture
def toys(tmp_path) -> Iterator[ToyWorkers]:
    """Workers that end with the test."""
    workers = ToyWorkers(TOY, tmp_path)
    yield workers
    workers.stop()


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """No process and no thread outlives its test."""
    before = set(children())
    threads = set(threading.enumerate())
    yield
    gone, alive = psutil.wait_procs([child for child in children() if child not in before], timeout=10)
    assert not alive, f"left behind: {alive}, ended late: {gone}"
    ours = [thread for thread in threading.enumerate() if thread not in threads and "_poll_wrapper" not in thread.name]
    for thread in ours:  # gRPC's poller alone lives as long as the process
        thread.join(5)
    assert not [thread for thread in ours if thread.is_alive()]
