"""A machine whose devices are nodes of their own, in a LAN, without an address typed."""

from __future__ import annotations

import json


def test_devices_of_one_machine_are_found_planned_over_and_known_to_be_neighbours(machine, tiny_model):
    head, box = machine("head"), machine("box")
    devices = ("worker", "--devices", "cpu,cpu", "--threads", "2")
    first = head.start("serve", tiny_model)
    token = first.wait_for("hyperlane worker --join").split()[-1]
    joined = box.start(*devices, "--join", token)
    joined.wait_for("2 of 2 devices are ready")
    first.stop()
    joined.stop()
    again = box.start(*devices)  # each is the node that it was, and needs no token
    again.wait_for("2 of 2 devices are ready")

    second = head.start("serve", tiny_model)
    second.wait_for("ready:")
    status = json.loads(head.hyperlane("status", "--json"))
    nodes = {stage["worker"]["node"] for stage in status["plan"]["stages"] if "/" in stage["worker"]["name"]}
    assert len(nodes) == 2
    links = {(link["source"], link["target"]): link["same_machine"] for link in status["links"]}
    of_the_box = {pair: same for pair, same in links.items() if any("/cpu" in name for name in pair)}
    assert len(of_the_box) == 10
    assert {pair for pair, same in of_the_box.items() if same} == {
        pair for pair in of_the_box if all("/cpu" in name for name in pair)
    }
    assert "same machine" in head.hyperlane("status")
    assert not [one for one in box.doctor() if "has joined no cluster" in one["found"]]
    second.stop()
    again.stop()
