"""A model over the machines of a LAN, without an address typed."""

from __future__ import annotations

import json


def ask(machine, text: str = "Hello") -> dict:
    """A completion from the server on a machine."""
    code = (
        "import json, sys, urllib.request\n"
        "body = json.dumps({'model': 'tiny', 'prompt': %r, 'max_tokens': 8, 'temperature': 0}).encode()\n"
        "request = urllib.request.Request('http://127.0.0.1:8000/v1/completions', body)\n"
        "request.add_header('Content-Type', 'application/json')\n"
        "sys.stdout.write(urllib.request.urlopen(request, timeout=50).read().decode())\n"
    )
    return json.loads(machine.python(code % text))


def test_a_model_spreads_over_the_machines_that_joined_and_a_later_one_is_offered(machine, tiny_model):
    head, one, two = machine("head"), machine("one"), machine("two")
    first = head.start("serve", tiny_model)
    token = first.wait_for("hyperlane worker --join").split()[-1]
    alone = ask(head)
    one.start("worker", "--join", token).wait_for("is ready at")
    status = nodes_when(head, lambda nodes: len(nodes) == 2)
    assert [node["in_plan"] for node in by_address(status)] == [False, True]
    first.stop()

    second = head.start("serve", tiny_model, "--use", "all")
    second.wait_for("ready:")
    status = json.loads(head.hyperlane("status", "--json"))
    workers = [stage["worker"]["control"]["host"] for stage in status["plan"]["stages"]]
    assert sorted(workers) == ["10.77.0.2", "127.0.0.1"]
    assert status["plan"]["prediction"]["token_s"] > 0
    found = {node["address"]["host"]: node["found"] for node in status["nodes"]}
    assert found["127.0.0.1"] == ["local"]
    assert "mdns (lan0)" in found["10.77.0.2"]
    assert ask(head)["choices"] == alone["choices"]
    two.start("worker", "--join", head.hyperlane("token", "create").strip()).wait_for("is ready at")
    status = nodes_when(head, lambda nodes: len(nodes) == 3)
    (later,) = [node for node in status["nodes"] if node["address"]["host"] == "10.77.0.3"]
    assert later["state"] == "ready"
    assert not later["in_plan"]
    second.stop()


def by_address(status: dict) -> list[dict]:
    return sorted(status["nodes"], key=lambda node: node["address"]["host"])


def nodes_when(head, fits) -> dict:
    """The server's status when its nodes are as they should be; `--watch` tells of every change."""
    watching = head.start("status", "--watch", "--json", "--every", "0.5")
    while True:
        line = watching.next_line()
        if line.startswith("{"):
            status = json.loads(line)
            if fits([node for node in status["nodes"] if node["state"] == "ready"]):
                watching.kill()
                return status
