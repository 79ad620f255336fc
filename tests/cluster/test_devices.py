"""One command, several workers: `hyperlane worker --devices cpu,cpu` as a user meets it, with the real engine."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from contextlib import ExitStack

import psutil
import pytest

from hyperlane import config
from hyperlane.core import Address
from hyperlane.node import start_serving
from hyperlane.testing.program import Program
from hyperlane.testing.toy_cluster import answer

QUIET = {"HYPERLANE_DISCOVERY_MDNS": "no", "HYPERLANE_JOIN_LISTEN": "127.0.0.1:0"}
READY = re.compile(r"\[(\S+)\] worker (\S+) is ready at (\S+) \(process (\d+)\)")
ASK = ("the ring", "--raw", "-n", "12", "-t", "0", "--json")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def free_base() -> int:
    """A port with three more behind it, all free and none that the system gives to others."""
    for base in range(20000 + os.getpid() % 1000 * 8, 32000, 8):
        with ExitStack() as probes:
            try:
                for port in range(base, base + 4):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise AssertionError("no four free ports")


def devices(folder, *flags: str) -> tuple[Program, list[re.Match[str]]]:
    """The command when both of its workers are ready, and what it said of each."""
    listen = ("--listen", f"127.0.0.1:{free_base()}")
    program = Program("worker", "--devices", "cpu,cpu", "--threads", "2", *listen, *flags, home=folder, environ=QUIET)
    program.wait_for("2 of 2 devices are ready")
    return program, sorted(READY.finditer(program.stderr), key=lambda said: said[1])


def asked(folder, model: str, ready: list[re.Match[str]]) -> dict[str, object]:
    named = [word for said in ready for word in ("--worker", said[3])]
    with Program("run", model, *ASK, *named, home=folder, environ=QUIET) as program:
        program.end_input()
        assert program.wait() == 0, program.stderr
    return json.loads(program.stdout)


def test_one_command_and_one_token_make_two_nodes_of_one_host(tmp_path, tiny_model):
    with Program("serve", tiny_model, "--port", "0", home=tmp_path / "head", environ=QUIET) as head:
        token = re.search(r"hl1[a-z2-7]+", head.wait_for("hyperlane worker --join"))[0]
        program, ready = devices(tmp_path / "box", "--join", token)
        with program:
            there = asked(tmp_path / "head", tiny_model, ready)
            workers = [stage["worker"] for stage in there["plan"]["stages"]]
            assert [one["name"].partition("/")[2] for one in workers] == ["cpu", "cpu-2"]
            assert len({one["node"] for one in workers}) == 2
            assert len({(one["machine"], one["host"]) for one in workers}) == 1
            assert all(one["host"] for one in workers)
            assert Address.parse(ready[1][3]).port == Address.parse(ready[0][3]).port + 2
            program.signal_group(signal.SIGINT)
            assert program.wait() == 130, program.stderr
            assert program.survivors() == []
        with Program("node", "list", "--json", home=tmp_path / "head", environ=QUIET) as nodes:
            assert nodes.wait() == 0
        listed = {(one["node"], one["name"].partition("/")[2]) for one in json.loads(nodes.stdout)}
        assert listed == {(one["node"], one["name"].partition("/")[2]) for one in workers}


@pytest.mark.slow
def test_a_worker_that_is_killed_comes_again_and_none_outlives_the_command(tmp_path):
    program, ready = devices(tmp_path)
    with program:
        os.kill(int(ready[0][4]), signal.SIGKILL)
        program.wait_for("[cpu] the worker was killed by signal 9; it is started again in 1 s")
        program.wait_for("[cpu] worker")
        again = sorted(READY.finditer(program.stderr), key=lambda said: said[1])
        assert [said[3] for said in again] == [ready[0][3], ready[0][3], ready[1][3]], "it is where it was"
        family = psutil.Process(program.pid).children(recursive=True)
        os.kill(program.pid, signal.SIGKILL)
        _, left = psutil.wait_procs(family, timeout=20)
        assert left == []


def test_serve_starts_a_worker_for_each_of_its_own_devices(tiny_model):
    with start_serving(config.load(config.ServeConfig, model=tiny_model, devices=("cpu", "cpu"), slots=2)) as serving:
        stages = serving.plan.stages
        assert [stage.worker.device for stage in stages] == ["cpu", "cpu"]
        assert len({stage.worker.control for stage in stages}) == 2
        assert answer(serving)
