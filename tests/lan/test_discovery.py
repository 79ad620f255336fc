"""Real workers on real networks of namespaces: found, lost, kept apart, and named when they are copies."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from hyperlane.testing.lan_relay import Shape


def worker(machine, token: str | None = None, **environ: str):
    """A worker that is up on a machine, and when it was."""
    running = machine.start("worker", *(("--join", token) if token else ()), **environ)
    running.wait_for("is ready at")
    return running, time.time()


def test_workers_are_found_on_the_lan_within_seconds(watcher, machine, capsys):
    head = watcher("head")
    token = head.token()
    up = {}
    for name in ("one", "two", "three"):
        _, up[name] = worker(machine(name), token)
    ready = {}
    while len(ready) < 3:
        said = head.wait("ready")
        ready[said["address"]] = said["at"]
    there = head.look()["found"]
    assert sorted(one["address"] for one in there) == [f"10.77.0.{host}:7420" for host in (2, 3, 4)]
    assert all("mdns (lan0)" in one["found"] for one in there)
    took = [ready[f"10.77.0.{2 + index}:7420"] - at for index, at in enumerate(up.values())]
    with capsys.disabled():
        print(f"\nfound after {', '.join(f'{seconds:.2f} s' for seconds in took)} (issue: under 5 s)")
    head.stop()


def test_two_clusters_on_one_lan_do_not_mix(watcher, machine):
    first, second = watcher("first"), watcher("second")
    worker(machine("one"), first.token())
    worker(machine("two"), second.token())
    assert first.wait("ready")["address"] == "10.77.0.3:7420"
    assert second.wait("ready")["address"] == "10.77.0.4:7420"
    for head, own in ((first, "10.77.0.3:7420"), (second, "10.77.0.4:7420")):
        there = head.look_until(lambda there: there["strangers"])
        assert [one["address"] for one in there["found"]] == [own]
        assert len(there["strangers"]) == 1


def test_where_multicast_is_lost_workers_come_to_the_door(lan, watcher, machine):
    head = watcher("head")
    one = machine("one")
    lan.drop_multicast()
    worker(one, head.token())
    assert head.wait("ready")["address"] == "10.77.0.2:7420"
    (found,) = head.look()["found"]
    assert found["found"] == ["token (registered from 10.77.0.2)"]


def test_where_multicast_is_lost_an_address_by_hand_works(lan, watcher, machine):
    head = watcher("head", HYPERLANE_DISCOVERY_ADDRESSES="10.77.0.2:7420")
    one = machine("one")
    token = head.token()
    lan.drop_multicast()
    worker(one, token)
    head.look_until(lambda there: there["found"] and "static (10.77.0.2:7420)" in there["found"][0]["found"])


def test_a_cable_that_is_out_for_a_moment_evicts_nobody_and_one_that_stays_out_does(watcher, machine):
    head = watcher("head")
    one = machine("one")
    worker(one, head.token())
    head.wait("ready")
    one.host.cut()
    assert head.wait("suspect")["address"] == "10.77.0.2:7420"
    one.host.heal()
    head.wait("ready")
    assert "gone" not in [said["event"] for said in head.seen]


def test_a_worker_that_ends_is_gone_and_comes_back_by_itself(watcher, machine):
    head = watcher("head")
    one = machine("one")
    running, _ = worker(one, head.token())
    head.wait("ready")
    running.stop()
    head.wait("suspect")
    worker(one)
    head.wait("ready")


def test_a_copied_state_directory_is_refused_where_it_was_copied_to(watcher, machine):
    head = watcher("head")
    desk, lap = machine("desk"), machine("lap")
    worker(desk, head.token())
    head.wait("ready")
    shutil.copytree(desk.home, lap.home)
    said = lap.hyperlane("worker", code=5)
    assert said == ""


def test_a_copied_identity_that_pretends_to_be_the_same_machine_elsewhere_is_reported_by_name(watcher, machine):
    head = watcher("head")
    desk, lap = machine("desk"), machine("lap")
    worker(desk, head.token())
    head.wait("ready")
    shutil.copytree(desk.home, lap.home)
    # The copy's own machine cannot tell (no machine id, as in containers of one image): the LAN can.
    (lap.home / "state" / "trust" / "node.json").write_text(
        (lap.home / "state" / "trust" / "node.json").read_text().replace('"named"', '"other"')
    )
    worker(lap)
    there = head.look_until(lambda there: there["duplicates"])
    assert len(there["found"]) == 1
    assert "two machines with the identity" in there["duplicates"][0]


def test_docker0_is_never_the_way_and_a_faster_cable_is_taken(watcher, machine):
    head = watcher("head")
    one = machine("one")
    for host in (head.machine.host, one.host):
        host.add_virtual("docker0", "172.17.0.1/16")
    worker(one, head.token())
    assert head.wait("ready")["address"] == "10.77.0.2:7420"
    head.machine.host.add_cable(one.host, "eth1", "eth1")
    there = head.look_until(lambda there: there["found"][0]["address"] == "10.99.0.2:7420")
    assert "mdns (eth1)" in there["found"][0]["found"]


def test_workers_behind_a_slow_and_lossy_cable_are_found_and_kept(watcher, machine):
    head = watcher("head")
    far = machine("far", shape=Shape(delay_ms=20, jitter_ms=10, loss=0.02, rate_mbit=20))
    worker(far, head.token())
    head.wait("ready")
    head.look_until(lambda there: there["found"][0]["state"] == "ready")


def test_a_flood_of_false_adverts_and_noise_hides_no_worker_and_is_followed_nowhere(watcher, machine):
    head, evil, one = watcher("head"), machine("evil"), machine("one")
    token = head.token()
    cluster = head.machine.python(
        "from hyperlane import config\n"
        "from hyperlane.cluster.discovery.advert import short_cluster\n"
        "from hyperlane.cluster.trust.opening import head_trust\n"
        "print(short_cluster(head_trust(config.load(config.Paths)).credentials.cluster))"
    ).strip()
    hostile = Path(__file__).with_name("hostile.py")
    evil.program(sys.executable, str(hostile), evil.host.address, cluster).wait_for("noisy")
    worker(one, token)
    ready = head.wait("ready")
    assert ready["address"] == "10.77.0.3:7420"
    there = head.look()["found"]
    assert len(there) <= 257  # what adverts may make, and the one that came to the door
    assert [member["address"] for member in there if member["state"] == "ready"] == ["10.77.0.3:7420"]
    # Addresses that are on no network of this machine are dialled by nobody, false names cannot write to a terminal.
    assert not [member for member in there if "203.0.113.9" in member["address"]]
    assert not [member for member in there if "\x1b" in member["name"]]


def test_link_local_ipv6_alone_is_enough(watcher, machine):
    head, one = watcher("head"), machine("one")
    token = head.token()
    running, _ = worker(one, token)
    head.wait("ready")
    running.stop()
    head.wait("gone")
    for host in (head.machine.host, one.host):
        host.lan.ip(host.namespace, "addr flush dev lan0 scope global")
    worker(one)
    assert head.wait("ready")["address"].startswith("[fe80::")
