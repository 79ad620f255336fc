"""A cable that drops every packet in mid-stream, without a word to anybody: the answer goes on, and is the same."""

from __future__ import annotations

import json
import sys
import time

import pytest

from hyperlane.cluster.membership import Times
from hyperlane.testing.lan_relay import Shape
from hyperlane.testing.programmed import DeviceSpeed
from hyperlane.testing.tiny_models import write_tiny_model

SPEED = DeviceSpeed(layer_ms=4.0, token_ms=0.1)
TOKENS = 150
WITHIN_S = 60.0

READER = """
import json, sys, urllib.request
body = {"model": "tiny", "prompt": "Hello", "max_tokens": %d, "temperature": 0, "ignore_eos": True, "stream": True}
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", json.dumps(body).encode())
request.add_header("Content-Type", "application/json")
for line in urllib.request.urlopen(request, timeout=50):
    if line.startswith(b"data: {"):
        print(json.dumps(json.loads(line[6:])["choices"][0]["text"]), flush=True)
print("[]", flush=True)
"""


@pytest.fixture(scope="session")
def roomy_model(tmp_path_factory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf", context=1024))


def answer(machine, strike=lambda: None) -> tuple[list[str], float]:
    """The pieces of a streamed answer, and the longest pause after `strike`, which is called in mid-stream."""
    reader = machine.program(sys.executable, "-c", READER % TOKENS)
    pieces: list[str] = []
    longest_s, last_s = 0.0, 0.0
    while (piece := json.loads(reader.next_line())) != []:
        now_s = time.monotonic()
        longest_s, last_s = max(longest_s, now_s - last_s if last_s else 0.0), now_s if last_s else 0.0
        pieces.append(piece)
        if len(pieces) == TOKENS // 5:
            strike()
            last_s = time.monotonic()
    return pieces, longest_s


def planned(head) -> set[str]:
    """Hosts of the running plan's workers."""
    status = json.loads(head.hyperlane("status", "--json"))
    return {stage["worker"]["control"]["host"] for stage in status["plan"]["stages"]}


def two_workers(machine, model):
    """A head, two workers, and a plan with both."""
    head, near, far = machine("head"), machine("near"), machine("far", shape=Shape(delay_ms=1.0))
    first = head.start("serve", model)
    token = first.wait_for("hyperlane worker --join").split()[-1]
    for worker in (near, far):
        worker.program(*SPEED.command(), "--join", token).wait_for("is ready at")
    first.stop()
    # This machine's own worker is given no memory: its engine is another one.
    head.start("serve", model, "--memory", "1MiB", "--measure", "never", "--context", "512").wait_for("ready:")
    assert planned(head) == {near.host.address, far.host.address}
    return head, near, far


def wait_for_plan(head, *workers) -> float:
    """Seconds until the plan is of these workers."""
    began_s = time.monotonic()
    while planned(head) != {worker.host.address for worker in workers}:
        assert time.monotonic() - began_s < WITHIN_S
        time.sleep(0.1)
    return time.monotonic() - began_s


def test_a_cable_that_drops_all_in_mid_stream_changes_no_answer(machine, roomy_model, capsys):
    head, near, far = two_workers(machine, roomy_model)
    undisturbed, _ = answer(head)
    disturbed, gap_s = answer(head, lambda: far.host.relay.set(Shape(cut=True)))
    assert "".join(disturbed) == "".join(undisturbed)
    assert planned(head) == {near.host.address}
    with capsys.disabled():
        print(f"\nthe stream stood still for {gap_s:.2f} s after the cut")


@pytest.mark.timeout(240)
def test_a_worker_whose_cable_was_out_until_it_was_forgotten_is_used_again(machine, roomy_model, capsys):
    head, near, far = two_workers(machine, roomy_model)
    far.host.relay.set(Shape(cut=True))
    wait_for_plan(head, near)
    time.sleep(Times().gone_after_s)
    far.host.relay.set(Shape(delay_ms=1.0))
    back_s = wait_for_plan(head, near, far)
    undisturbed, _ = answer(head)
    assert undisturbed == answer(head)[0]
    with capsys.disabled():
        print(f"\nthe worker was part of the plan {back_s:.1f} s after its cable was plugged in")
