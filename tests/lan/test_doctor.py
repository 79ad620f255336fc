"""Everything that the doctor finds on a network, provoked on a real one."""

from __future__ import annotations

import json
import shutil

import pytest

from hyperlane.testing.lan_relay import Shape

LISTENER = """
import socket, sys
sock = socket.create_server((sys.argv[1], 7420))
print("up", flush=True)
while True:
    sock.accept()[0].close()
"""


@pytest.fixture
def pair(machine):
    """Two machines, the second of which has something on port 7420."""
    mine, theirs = machine("mine"), machine("theirs")
    process = theirs.host.start(["python3", "-c", LISTENER, "0.0.0.0"])
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return mine, theirs


def of(findings: list[dict[str, str]], check: str, level: str) -> list[str]:
    return [one["found"] + " " + one["means"] for one in findings if (one["check"], one["level"]) == (check, level)]


def test_a_sound_network_has_no_problem_but_that_nobody_advertises(pair):
    mine, theirs = pair
    findings = mine.doctor("--worker", f"{theirs.host.address}:7420")
    assert of(findings, "multicast", "ok")
    assert "round trip" in of(findings, "reach", "ok")[0]


def test_a_worker_that_is_heard_is_reached_and_its_multicast_works(watcher, machine):
    head = watcher("head")
    one = machine("one")
    one.start("worker", "--join", head.token()).wait_for("is ready at")
    findings = head.machine.doctor()
    assert "1 other machine(s) heard" in of(findings, "multicast", "ok")[0]
    assert of(findings, "reach", "ok")
    assert not of(findings, "reach", "problem")
    assert of(findings, "identity", "ok")
    there = one.doctor()
    assert of(there, "port", "ok") == ["a worker listens on [::]:7420 "]
    assert "this machine is in that cluster" in of(there, "head", "ok")[0]


def test_multicast_that_the_switch_loses_is_told_from_a_worker_that_is_off(lan, watcher, machine):
    head = watcher("head")
    one = machine("one")
    one.start("worker", "--join", head.token()).wait_for("is ready at")
    lan.drop_multicast()
    findings = head.machine.doctor("--worker", f"{one.host.address}:7420")
    (lost,) = of(findings, "multicast", "warning")
    assert "multicast is lost between" in lost
    assert of(findings, "reach", "ok")


def test_a_closed_port_is_told_from_a_filtered_one(pair):
    mine, theirs = pair
    findings = mine.doctor("--worker", f"{theirs.host.address}:7500")
    assert "nothing listens on port 7500" in of(findings, "reach", "problem")[0]
    theirs.host.filter_port(7420)
    findings = mine.doctor("--worker", f"{theirs.host.address}:7420")
    assert "firewall" in of(findings, "reach", "problem")[0]


def test_client_isolation_is_told_from_a_firewall(lan, pair):
    mine, theirs = pair
    lan.isolate_clients()
    findings = mine.doctor("--worker", f"{theirs.host.address}:7420")
    assert "client isolation" in of(findings, "reach", "problem")[0]


def test_an_address_elsewhere_has_no_route(pair):
    findings = pair[0].doctor("--worker", "10.200.0.1:7420")
    assert "another network" in of(findings, "reach", "problem")[0]


def test_a_machine_with_virtual_interfaces_alone_is_told_so(machine):
    mine = machine("mine")
    mine.host.add_virtual("docker0", "172.17.0.1/16")
    assert "lan0" in of(mine.doctor(), "interfaces", "ok")[0]
    mine.host.lan.ip(mine.host.namespace, "link set lan0 down")
    assert "docker0 (virtual" in of(mine.doctor(), "interfaces", "problem")[0]


def test_a_worker_that_would_listen_on_docker0_is_warned(machine):
    mine = machine("mine")
    mine.host.add_virtual("docker0", "172.17.0.1/16")
    findings = mine.doctor(HYPERLANE_WORKER_LISTEN="172.17.0.1:7420")
    assert "docker0, a virtual interface" in of(findings, "address", "warning")[0]


def test_of_two_ways_to_a_machine_the_round_trips_are_told(watcher, machine):
    head = watcher("head")
    one = machine("one", shape=Shape(delay_ms=3.0))
    head.machine.host.add_cable(one.host, "eth1", "eth1")
    one.start("worker", "--join", head.token()).wait_for("is ready at")
    (ways,) = of(head.machine.doctor(), "paths", "note")
    assert ways.index("eth1") < ways.index("lan0")
    assert "eth1 is used, the fastest" in ways


def test_a_clock_that_is_far_off_is_noticed_where_it_is(watcher, machine):
    head = watcher("head")
    one = machine("one")
    one.start("worker", "--join", head.token()).wait_for("is ready at")
    assert not of(one.doctor(), "clock", "problem")
    code = "import time, sys; real = time.time; time.time = lambda: real() - 3600 * 24 * 30; "
    code += "sys.argv = ['hyperlane', 'doctor', '--json']; from hyperlane.cli.main import main; main()"
    findings = json.loads(one.python(code, check=False))["findings"]
    assert "its certificate begins in 30 days" in of(findings, "clock", "problem")[0]
    assert "the clock of the head is" in " ".join(of(findings, "clock", "problem"))


def test_a_copied_folder_is_named_on_the_copy_and_on_the_lan(watcher, machine):
    head = watcher("head")
    desk, lap = machine("desk"), machine("lap")
    desk.start("worker", "--join", head.token()).wait_for("is ready at")
    shutil.copytree(desk.home, lap.home)
    findings = lap.doctor()
    assert "was copied from another machine" in " ".join(of(findings, "identity", "problem"))


def test_a_program_that_holds_the_port_is_named(pair):
    _, theirs = pair
    findings = theirs.doctor(HYPERLANE_WORKER_LISTEN="0.0.0.0:7420")
    assert "in use: by" in of(findings, "port", "warning")[0]


def test_the_exit_code_says_whether_there_is_a_problem(pair):
    mine, theirs = pair
    mine.hyperlane("doctor", "--worker", f"{theirs.host.address}:7420", "--json", code=0)
    mine.hyperlane("doctor", "--worker", f"{theirs.host.address}:7500", "--json", code=1)
