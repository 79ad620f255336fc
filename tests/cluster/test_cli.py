"""The command line as a user runs it: real processes, a tiny model."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from hyperlane.testing.program import Program
from hyperlane.testing.tiny_models import write_tiny_model

ESCAPES = re.compile(r"\x1b\[")


@pytest.fixture
def hyperlane(hyperlane_home):
    """Starts programs; kills at the end what a failed test leaves."""
    programs: list[Program] = []

    def start(*arguments: str, **environ: str) -> Program:
        programs.append(Program(*arguments, home=hyperlane_home, environ=environ))
        return programs[-1]

    yield start
    for program in programs:
        program.__exit__(None, None, None)


@pytest.fixture(scope="session")
def talkative_model(tmp_path_factory) -> str:
    """A model whose greedy answers do not end before the context of 8192 tokens does."""
    return str(write_tiny_model(tmp_path_factory.mktemp("models") / "talkative.gguf", context=8192))


def finish(program: Program, text: str = "") -> Program:
    if text:
        program.say(text)
    program.end_input()
    program.code = program.wait()
    return program


def test_run_prints_the_answer_alone_and_the_summary_beside_it(hyperlane, tiny_model):
    arguments = ("run", tiny_model, "the ring", "--raw", "-n", "8", "-t", "0", "--local-workers", "2")
    ran = finish(hyperlane(*arguments))
    assert ran.code == 0, ran.stderr
    assert ran.stdout.endswith("\n")
    again = finish(hyperlane(*arguments, "--quiet"))
    assert again.stdout == ran.stdout
    assert again.stderr == ""
    assert re.search(r"^0 +0-1 ", ran.stderr, re.MULTILINE)
    assert re.search(r"^1 +2-3 ", ran.stderr, re.MULTILINE)
    assert "bytes per token: head → 0" in ran.stderr
    assert "8 answer tokens" in ran.stderr


def test_answers_are_utf_8_whatever_the_locale_says(hyperlane, tiny_model):
    ran = finish(hyperlane("run", tiny_model, "-", "--raw", "-n", "2", PYTHONIOENCODING="ascii"), "größer\n")
    assert ran.code == 0, ran.stderr
    assert "head → 0" in ran.stderr


def test_run_as_json_prints_one_object_with_answer_usage_and_plan(hyperlane, tiny_model):
    ran = finish(hyperlane("run", tiny_model, "the", "--raw", "-n", "5", "-t", "0", "--json", "--local-workers", "2"))
    assert ran.code == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["usage"]["completion_tokens"] == 5
    assert found["finish_reason"] == "length"
    assert [stage["layers"] for stage in found["plan"]["stages"]] == [{"first": 0, "last": 2}, {"first": 2, "last": 4}]
    assert found["timings"]["ttft_s"] > 0
    assert ran.stderr == ""


@pytest.mark.parametrize("dash", [["-"], []])
def test_run_reads_the_prompt_from_standard_input(hyperlane, tiny_model, dash):
    ran = finish(hyperlane("run", tiny_model, *dash, "--raw", "-n", "2", "--json"), "the prompt\n")
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["usage"]["completion_tokens"] == 2


def test_output_that_is_no_terminal_has_no_colours(hyperlane, tiny_model):
    for arguments in (["--help"], ["run", tiny_model, "x", "--raw", "-n", "1"], ["run", "no-such-model", "x"]):
        ran = finish(hyperlane(*arguments))
        assert not ESCAPES.search(ran.stdout + ran.stderr)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "smolm2-135m", "x"], 2, "smollm2-135m"),
        (["run", "./no/such/file.gguf", "x"], 2, "no/such/file.gguf"),
        (["export", "./no/such/file.gguf"], 2, "no/such/file.gguf"),
        (["export", "smollm2-135m", "--device", "coreml"], 2, "cpu, cuda, webgpu"),
        (["run", "MODEL", ""], 2, "the prompt is empty"),
        (["run", "MODEL", "x", "--worker", "127.0.0.1:9"], 5, "127.0.0.1:9"),
        (["run", "MODEL", "x", "--raw", "--temperature", "-1"], 2, "temperature"),
        (["run", "MODEL", "x", "--slots", "none"], 2, "--slots"),
        (["run", "MODEL", "the " * 300, "--raw"], 2, "context"),
        (["run", "MODEL", "x", "--memory", "1M"], 5, "MiB"),
        (["worker", "--listen", "0.0.0.0:0"], 2, "--join TOKEN"),
        (["status", "--url", "http://127.0.0.1:9"], 5, "nothing answers"),
    ],
)
def test_what_goes_wrong_is_told_in_a_line_with_its_exit_code(hyperlane, tiny_model, arguments, code, words):
    said = [tiny_model if argument == "MODEL" else argument for argument in arguments]
    ran = finish(hyperlane(*said, HYPERLANE_SERVE_CONNECT_TIMEOUT_S="1"))
    assert (ran.code, ran.stdout) == (code, ""), ran.stderr
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.survivors() == []


def test_a_truncated_file_is_a_model_error(hyperlane, tiny_model, tmp_path):
    broken = tmp_path / "broken.gguf"
    with open(tiny_model, "rb") as whole:
        broken.write_bytes(whole.read(3000))
    ran = finish(hyperlane("run", str(broken), "x"))
    assert ran.code == 3, ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_port_in_use_is_told_before_anything_is_loaded(hyperlane, tiny_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = finish(hyperlane("serve", tiny_model, "--port", port))
    assert ran.code == 2
    assert f"127.0.0.1:{port} is in use" in ran.stderr
    assert "layers" not in ran.stderr


def test_serve_answers_and_says_its_status_and_ctrl_c_leaves_nothing(hyperlane, tiny_model):
    serve = hyperlane("serve", tiny_model, "--local-workers", "2", "--port", "0")
    url = re.search(r"http://\S+?(?=/v1)", serve.wait_for("ready: "))[0]
    status = finish(hyperlane("status", "--url", url, "--json"))
    assert status.code == 0, status.stderr
    assert json.loads(status.stdout)["ready"] is True
    serve.signal_group(signal.SIGINT)
    assert serve.wait() == 130
    assert serve.survivors() == []
    assert "Traceback" not in serve.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_mid_answer_ends_everything(hyperlane, talkative_model, number, code):
    run = hyperlane("run", talkative_model, "the", "--raw", "-t", "0", "--local-workers", "2")
    run.wait_for("layers on 2")
    run.signal_group(number)
    assert run.wait() == code
    assert run.survivors() == []
    assert "Traceback" not in run.stderr


def test_workers_end_when_the_head_is_killed(hyperlane, tiny_model):
    serve = hyperlane("serve", tiny_model, "--local-workers", "2", "--port", "0")
    serve.wait_for("ready: ")
    serve.kill()
    assert serve.survivors() == []


def test_a_worker_announces_its_port_and_ends_with_its_parent(hyperlane):
    worker = hyperlane("worker", "--listen", "127.0.0.1:0", "--announce")
    assert json.loads(worker.wait_for("{"))["port"] > 0
    worker.end_input()
    assert worker.wait() == 0
    assert worker.survivors() == []


def test_ctrl_c_ends_a_worker(hyperlane):
    worker = hyperlane("worker", "--listen", "127.0.0.1:0", "--announce")
    worker.wait_for("{")
    worker.signal_group(signal.SIGINT)
    assert worker.wait() == 130
    assert "Traceback" not in worker.stderr


def test_serve_uses_workers_by_address_and_leaves_them_running(hyperlane, tiny_model):
    workers = [hyperlane("worker", "--listen", "127.0.0.1:0", "--announce") for _ in range(2)]
    ports = [json.loads(worker.wait_for("{"))["port"] for worker in workers]
    addresses = [part for port in ports for part in ("--worker", f"127.0.0.1:{port}")]
    for _ in range(2):  # a second head finds the workers free
        ran = finish(hyperlane("run", tiny_model, "the", "--raw", "-n", "2", "--json", *addresses))
        assert ran.code == 0, ran.stderr
        stages = json.loads(ran.stdout)["plan"]["stages"]
        assert [stage["worker"]["control"]["port"] for stage in stages] == ports
    assert all(worker.is_running for worker in workers)


def test_chat_over_pipes_answers_each_line(hyperlane, tiny_model):
    chat = finish(
        hyperlane("chat", tiny_model, "-n", "4", "-t", "0"), "first\n/reset\nfirst\n/help\n/exit\nnever sent\n"
    )
    assert chat.code == 0, chat.stderr
    answers = chat.stdout.rstrip("\n").split("\n")
    assert answers[: len(answers) // 2] == answers[len(answers) // 2 :]
    assert "/reset" in chat.stderr


def test_a_reader_that_goes_away_is_no_traceback(hyperlane_home, tiny_model):
    line = f"{sys.executable} -m hyperlane run {tiny_model} the --raw -n 200 -q | head -c 1"
    ran = subprocess.run(
        ["sh", "-c", line],
        check=False,
        capture_output=True,
        env={**os.environ, "HYPERLANE_HOME": str(hyperlane_home)},
        timeout=60,
    )
    assert ran.stderr == b""


def test_bench_as_json_has_prompts_streams_stages_and_draws_their_timeline(hyperlane, tiny_model, tmp_path):
    picture = tmp_path / "stages.svg"
    sizes = ("--prompt-tokens", "32", "--streams", "1", "--streams", "3", "--new-tokens", "8", "--repetitions", "1")
    ran = finish(hyperlane("bench", tiny_model, *sizes, "--local-workers", "2", "--json", "--timeline", str(picture)))
    assert ran.code == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert [one["tokens"] for one in found["figures"]["prompts"]] == [32]
    assert [one["streams"] for one in found["figures"]["decodes"]] == [1, 3]
    assert all(one["rate"] > 0 for one in found["figures"]["decodes"])
    assert [stage["plan"]["index"] for stage in found["status"]["stages"]] == [0, 1]
    assert list(found["bubbles"]) == ["prompt of 32 tokens", "1 stream", "3 streams"]
    assert all(0 <= share < 1 for share in found["bubbles"].values())
    assert picture.read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((), "name a model"), (("--endpoint", "http://127.0.0.1:1", "--timeline", "x.svg"), "leave out --timeline")],
)
def test_bench_says_what_it_cannot_measure(hyperlane, arguments, says):
    ran = finish(hyperlane("bench", *arguments))
    assert ran.code == 2
    assert says in ran.stderr
