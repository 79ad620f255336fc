"""Paths of a LAN are measured as they are, the best of several is taken, and no stranger measures any."""

from __future__ import annotations

import json

MBIT = 125_000
TOLERANCE = 0.15
"""Of a shaped rate: headers of TCP and TLS take 4 % of it, and a queue is never quite full."""


def links(head) -> dict[tuple[str, str], dict]:
    """What was measured, by the addresses of both ends."""
    found = json.loads(head.hyperlane("status", "--json"))["links"]
    hosts = {"head": "head"} | {link["target"]: link["address"]["host"] for link in found if link["source"] == "head"}
    return {(hosts[link["source"]], hosts[link["target"]]): link for link in found}


def serve_over(machine, tiny_model, *others):
    """A head that serves over itself and these; they have joined."""
    head = machine("head")
    first = head.start("serve", tiny_model)
    first.wait_for("hyperlane worker --join")  # the cluster is made
    for other in others:
        token = head.hyperlane("token", "create").strip()
        other.start("worker", "--join", token).wait_for("is ready at")
    first.stop()
    head.start("serve", tiny_model).wait_for("ready:")
    return head


def test_a_shaped_link_is_measured_within_its_tolerance_in_both_directions(machine, tiny_model):
    slow, fast = machine("slow", rate="50mbit"), machine("fast", rate="200mbit")
    found = links(serve_over(machine, tiny_model, slow, fast))
    here, there = slow.host.address, fast.host.address
    for pair, rate in (
        (("head", here), 50),
        ((here, "head"), 50),
        ((here, there), 50),
        ((there, here), 50),
        (("head", there), 200),
        ((there, "head"), 200),
    ):
        measured = found[pair]["bytes_per_s"] / MBIT
        assert abs(measured - rate) <= TOLERANCE * rate, f"{pair}: {measured:.1f} instead of {rate} Mbit/s"
    assert all(0 < link["rtt_us"] < 50_000 for link in found.values())
    assert sum(link["in_plan"] for link in found.values()) == 4
