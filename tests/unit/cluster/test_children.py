"""Child processes: found by what they say, ended by the end of their input, reported with their last words."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from hyperlane.cluster.announce import Announcement, Child, ChildFailed
from hyperlane.cluster.local import LOGS_KEPT, LocalWorkerOptions, LocalWorkers, prune_logs
from hyperlane.config import Paths
from hyperlane.core import Address
from hyperlane.errors import ConfigError

ANNOUNCE = """
import sys
from hyperlane.cluster.announce import Announcement, when_parent_ends
from hyperlane.core import Address
import threading
ended = threading.Event()
when_parent_ends(ended.set)
Announcement("toy", Address("127.0.0.1", 4711), "tok").print()
print("noise", file=sys.stderr)
ended.wait()
"""
PARENT = """
import pathlib, sys
from hyperlane.cluster.announce import Child
child = Child([sys.executable, "-c", sys.argv[1]], pathlib.Path(sys.argv[2]))
import time
child.announcement(time.monotonic() + 30)
print(child.pid, flush=True)
time.sleep(60)
"""


def soon() -> float:
    return time.monotonic() + 30


@pytest.fixture
def child(tmp_path):
    children: list[Child] = []

    def start(code: str) -> Child:
        children.append(Child([sys.executable, "-c", code], tmp_path / f"{len(children)}.log"))
        return children[-1]

    yield start
    for one in children:
        one.stop(time.monotonic())


def test_a_child_says_where_it_is_and_ends_with_its_input(child):
    started = child(ANNOUNCE)
    assert started.announcement(soon()) == Announcement("toy", Address("127.0.0.1", 4711), "tok")
    assert started.ended is None
    started.stop(soon())
    assert started.ended == "ended with exit code 0"
    assert not started.log.exists()


def test_a_child_that_fails_is_reported_with_its_last_words_and_keeps_its_log(child):
    started = child("import sys; print('it was', 'the cable', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ChildFailed, match=r"ended with exit code 3; its last words:\n  it was the cable"):
        started.announcement(soon())
    started.stop(soon())
    assert started.log.exists()


def test_a_child_that_says_something_else_is_no_child_of_ours(child):
    with pytest.raises(ChildFailed, match="hello"):
        child("print('hello', flush=True); input()").announcement(soon())


def test_a_child_that_says_nothing_is_given_up_in_time(child):
    with pytest.raises(ChildFailed, match="not ready in time"):
        child("input()").announcement(time.monotonic() + 0.2)


def test_a_child_that_does_not_end_by_itself_is_ended(child):
    started = child(ANNOUNCE.replace("ended.wait()", "import time; time.sleep(60)"))
    started.announcement(soon())
    started.stop(time.monotonic() + 0.1)
    assert started.ended is not None


def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    command = [sys.executable, "-c", PARENT, ANNOUNCE, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        orphan = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    _, alive = psutil.wait_procs([orphan], timeout=30)
    assert not alive


@pytest.mark.parametrize("line", [b"{}", b"[]", b"nope", b'{"name": "n", "host": "h", "port": "x"}'])
def test_a_line_that_is_no_announcement_is_refused(line):
    with pytest.raises(ValueError, match=r".*"):
        Announcement.read(line)


def test_old_logs_are_removed_and_the_newest_kept(tmp_path):
    for number in range(LOGS_KEPT + 5):
        (tmp_path / f"worker-2026010{number // 10}-{number % 10}.log").touch()
    prune_logs(tmp_path)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == LOGS_KEPT
    assert kept[0].name == "worker-20260100-5.log"


def test_this_machines_own_workers_are_named_by_number_in_a_placement(tmp_path):
    options = LocalWorkerOptions(1, "auto", None, Paths.under(tmp_path), command=(sys.executable, "-c", ANNOUNCE, "--"))
    workers = LocalWorkers([options])
    try:
        (address,) = workers.addresses()
        assert workers.named(["local0=0:4", "desk:7420=4:8"]) == (f"{address}=0:4", "desk:7420=4:8")
        with pytest.raises(ConfigError, match=r"local1=0:4: this machine has 1 worker"):
            workers.named(["local1=0:4"])
    finally:
        workers.close()
