"""Real worker processes under a head in this process: what works, what fails by name, and that nothing is left."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from hyperlane import config
from hyperlane.core import Address
from hyperlane.errors import ClusterError, DoesNotFit, LoadFailed, WorkerBusy, WorkerUnreachable
from hyperlane.node import make_plan, start_serving
from hyperlane.testing.fake_engine import fake_generate
from hyperlane.testing.toy_cluster import PROMPT, WITHIN_S, answer, children, serve_config
from hyperlane.wire.kind import Kind

TOY = (sys.executable, str(Path(__file__).with_name("toy_worker.py")))

pytestmark = pytest.mark.usefixtures("nothing_is_left")

# --- what works ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_so_many_workers_give_the_toys_own_tokens(tiny_model, workers):
    settings = serve_config(tiny_model, local_workers=workers)
    with start_serving(settings, worker_command=TOY) as serving:
        assert len(serving.plan.stages) == workers
        assert serving.service.ready()
        assert answer(serving) == fake_generate(PROMPT, 24, serving.service.facts)


def test_two_stages_of_the_real_engine_answer_as_one(tiny_model):
    answers = []
    for workers in (1, 2, 4):
        with start_serving(serve_config(tiny_model, local_workers=workers)) as serving:
            answers.append(answer(serving))
    assert answers[0] == answers[1] == answers[2]


def test_closing_twice_is_closing_once(tiny_model):
    serving = start_serving(serve_config(tiny_model, local_workers=1), worker_command=TOY)
    serving.close()
    serving.close()
    assert children_named("toy_worker") == []


def test_workers_by_address_serve_one_head_after_another(tiny_model, toys):
    workers = (toys.start(), toys.start())
    for _ in range(2):
        with start_serving(serve_config(tiny_model, workers=workers)) as serving:
            assert [stage.worker.control for stage in serving.plan.stages] == list(workers)
            assert answer(serving) == fake_generate(PROMPT, 24, serving.service.facts)


def test_a_second_head_is_told_that_the_workers_are_busy_and_disturbs_nothing(tiny_model, toys):
    settings = serve_config(tiny_model, workers=(toys.start(), toys.start()))
    with start_serving(settings) as serving:
        with pytest.raises(WorkerBusy, match="is held by head"):
            start_serving(settings)
        assert answer(serving) == fake_generate(PROMPT, 24, serving.service.facts)


def test_a_plan_is_made_without_loading_anything(tiny_model, toys):
    settings = serve_config(tiny_model, workers=(toys.start(), toys.start()))
    plan = make_plan(settings).plan
    assert [str(stage.layers) for stage in plan.stages] == ["0-1", "2-3"]
    with start_serving(settings) as serving:
        assert serving.plan.stages[0].layers == plan.stages[0].layers


def test_a_worker_without_the_file_gets_exactly_its_tensors_from_the_head(tiny_model, toys, tmp_path):
    settings = {"HYPERLANE_TEST_NO_FILES": "1", "HYPERLANE_TEST_DIGESTS": str(tmp_path)}
    remote = toys.start(**settings)
    local = toys.start(HYPERLANE_TEST_DIGESTS=str(tmp_path))
    phases: list[tuple[str, str]] = []
    with start_serving(
        serve_config(tiny_model, workers=(remote, local)), lambda p: phases.append((p.who, p.phase))
    ) as serving:
        assert answer(serving) == fake_generate(PROMPT, 24, serving.service.facts)
        assert children_named("tensor_server") == []
    assert {who.rpartition(":")[2] for who, phase in phases if phase == "fetching weights"} <= {str(remote.port)}
    fetched = (tmp_path / "stage-0").read_text()
    with start_serving(serve_config(tiny_model, workers=(local, remote))):
        assert (tmp_path / "stage-0").read_text() == fetched


def children_named(word: str) -> list[psutil.Process]:
    return [child for child in children() if any(word in part for part in child.cmdline())]


# --- what fails ----------------------------------------------------------------------------------------------


def test_a_worker_killed_while_loading_is_named_and_nothing_is_left(tiny_model, toys):
    doomed, other = toys.start(HYPERLANE_TEST_LOAD="hang"), toys.start()

    def kill(progress) -> None:
        if progress.phase == "hanging":
            toys.kill(0)

    with pytest.raises(LoadFailed, match=rf"worker .*:{doomed.port} at {doomed} was lost while loading stage 0"):
        start_serving(serve_config(tiny_model, workers=(doomed, other)), kill)
    with start_serving(serve_config(tiny_model, workers=(other,))) as serving:
        assert answer(serving, 4) == fake_generate(PROMPT, 4, serving.service.facts)


def test_a_local_worker_killed_while_loading_is_reported_with_how_it_ended(tiny_model, monkeypatch):
    monkeypatch.setenv("HYPERLANE_TEST_LOAD", "hang")

    hanging: set[str] = set()

    def kill(progress) -> None:
        if progress.phase == "hanging" and progress.who not in hanging:
            hanging.add(progress.who)
            if len(hanging) == 2:
                min(children_named("toy_worker"), key=lambda child: child.pid).kill()

    with pytest.raises(LoadFailed, match=r"local worker 0 \(process \d+\) was killed by signal 9"):
        start_serving(serve_config(tiny_model, local_workers=2), kill, worker_command=TOY)


def test_a_local_worker_that_crashes_while_loading_is_reported_with_its_last_words(tiny_model, monkeypatch):
    monkeypatch.setenv("HYPERLANE_TEST_LOAD", "crash")
    with pytest.raises(LoadFailed, match=r"exit code 77; its last words:\n  the toy crashed on purpose"):
        start_serving(serve_config(tiny_model, local_workers=1), worker_command=TOY)


def test_a_local_worker_that_cannot_start_is_reported_with_its_last_words(tiny_model):
    command = (sys.executable, "-c", "raise SystemExit('no engine here')")
    with pytest.raises(ClusterError, match=r"local worker 0 ended with exit code 1; its last words:\n  no engine here"):
        start_serving(serve_config(tiny_model, local_workers=2), worker_command=command)


def test_an_address_where_nobody_is_is_named(tiny_model, toys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = Address("127.0.0.1", free.getsockname()[1])
    settings = serve_config(tiny_model, workers=(toys.start(), nobody), connect_timeout_s=2)
    with pytest.raises(WorkerUnreachable, match=f"does not answer at {nobody}"):
        start_serving(settings)


def test_a_model_that_does_not_fit_leaves_the_workers_free(tiny_model, toys):
    address = toys.start(HYPERLANE_WORKER_MEMORY="1M")
    with pytest.raises(DoesNotFit, match="free"):
        start_serving(serve_config(tiny_model, workers=(address,)))


def test_a_port_in_use_is_told_in_a_line(toys):
    taken = toys.start()
    command = [sys.executable, "-m", "hyperlane", "worker", "--listen", str(taken)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert ran.returncode == 2
    assert f"cannot listen on {taken}" in ran.stderr
    assert "Traceback" not in ran.stderr


# --- who comes and goes --------------------------------------------------------------------------------------

HEAD = """
import sys, time
from hyperlane import config
from hyperlane.core import Address
from hyperlane.node import start_serving
workers = tuple(map(Address.parse, sys.argv[2:]))
serving = start_serving(config.load(config.ServeConfig, model=sys.argv[1], workers=workers))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_head_that_is_killed_loses_its_workers_to_the_next_one(tiny_model, toys):
    workers = tuple(toys.start(HYPERLANE_TEST_LEASE_S="3") for _ in range(2))
    command = [sys.executable, "-c", HEAD, tiny_model, *map(str, workers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as head:
        assert head.stdout.readline() == b"ready\n"
        # Another identity than the head's, which lives: its workers are not ours yet.
        with pytest.raises(WorkerBusy):
            start_serving(serve_config(tiny_model, workers=workers, paths=other_paths()))
        head.kill()
    # Nobody renews the leases any more: the next head waits for their end.
    with start_serving(serve_config(tiny_model, workers=workers, paths=other_paths())) as serving:
        assert answer(serving, 4) == fake_generate(PROMPT, 4, serving.service.facts)


def other_paths() -> config.Paths:
    """The directories of somebody else, with an identity of their own."""
    return config.Paths.under(Path(os.environ["HYPERLANE_HOME"]) / "another-user")


INTERRUPTED = """
import sys
from hyperlane import config
from hyperlane.node import start_serving
settings = config.load(config.ServeConfig, model=sys.argv[1], local_workers=2, threads=1)
start_serving(settings, lambda progress: print(progress.phase, flush=True), worker_command=tuple(sys.argv[3:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
@pytest.mark.parametrize("phase", ["starting local workers", "starting", "hanging"])
def test_ctrl_c_while_a_model_comes_up_leaves_no_process(tiny_model, phase):
    command = [sys.executable, "-c", INTERRUPTED, tiny_model, phase, *TOY]
    environ = {**os.environ, "HYPERLANE_TEST_LOAD": "hang"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environ, start_new_session=True, **pipes) as head:
        while head.stdout.readline().strip() != phase:
            assert head.poll() is None
        workers = psutil.Process(head.pid).children(recursive=True)
        assert workers
        os.killpg(head.pid, signal.SIGINT)
        _, errors = head.communicate(timeout=WITHIN_S)
    assert "KeyboardInterrupt" in errors
    _, alive = psutil.wait_procs(workers, timeout=1)
    assert not alive


# --- hostile peers -------------------------------------------------------------------------------------------


def malformed_frames(count: int, rng: random.Random):
    """Frames of every kind with something wrong: lengths, magic, version, epoch, kind, or plain noise."""
    header = struct.Struct("<4sBBHQQQIHH")
    for number in range(count):
        kind = list(Kind)[number % len(Kind)]
        fields = [b"HYPL", 1, kind, 0, 1, number, 0, 93 if kind is Kind.HELLO else 0, 0, 0]
        which = rng.randrange(12)
        if which < 10:
            high = [0, 255, 255, 65535, 2**64 - 1, 2**64 - 1, 2**64 - 1, 2**32 - 1, 65535, 65535][which]
            fields[which] = rng.randbytes(4) if which == 0 else rng.randint(high // 2, high)
        body = rng.randbytes(rng.randrange(200))
        yield (header.pack(*fields) + body) if which < 11 else rng.randbytes(rng.randrange(1, 300))


def test_a_thousand_malformed_frames_leave_the_workers_serving(tiny_model, toys):
    with start_serving(serve_config(tiny_model, workers=(toys.start(), toys.start()))) as serving:
        ports = [stage.worker.data for stage in serving.plan.stages]
        memory = [psutil.Process(child.pid).memory_info().rss for child in toys.children]
        for number, data in enumerate(malformed_frames(1000, random.Random(7))):
            port = ports[number % 2]
            with socket.create_connection((port.host, port.port), timeout=10) as sock:
                sock.sendall(data)
                if number % 50 == 0:
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(4096):
                        pass
        assert answer(serving) == fake_generate(PROMPT, 24, serving.service.facts)
        assert serving.service.ready()
        for child, before in zip(toys.children, memory, strict=True):
            assert psutil.Process(child.pid).memory_info().rss < before + (32 << 20)
    with start_serving(serve_config(tiny_model, workers=tuple(stage.worker.control for stage in serving.plan.stages))):
        pass
