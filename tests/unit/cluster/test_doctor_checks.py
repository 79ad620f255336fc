"""What each check says of what was found. Pure; the looking is tested in tests/lan."""

from __future__ import annotations

import dataclasses
import ipaddress

import pytest

from hyperlane.cluster.discovery.advert import Advert, Heard, NodeKind
from hyperlane.cluster.discovery.interfaces import Interface, InterfaceKind, Network
from hyperlane.cluster.doctor import machine_checks as machine
from hyperlane.cluster.doctor import network_checks as network
from hyperlane.cluster.doctor.finding import Level, exit_code, note, ok, problem, warning
from hyperlane.cluster.doctor.machine_checks import (
    GIB,
    ClockFacts,
    DiskFacts,
    IdentityFacts,
    PortFacts,
    RuntimeFacts,
)
from hyperlane.cluster.doctor.network_checks import MulticastFacts, PathFacts, PeerFacts, Reach
from hyperlane.core import NodeId

NOW = 1_790_000_000.0


def level(finding) -> str:
    assert finding.found
    if finding.level in (Level.WARNING, Level.PROBLEM):
        assert finding.means, "a finding that matters says what it means"
        assert finding.do, "and what to do"
    return str(finding.level)


def levels(findings) -> list[str]:
    return [level(one) for one in findings]


def test_the_exit_code_says_whether_something_stops_a_cluster():
    assert exit_code([ok("a", "x"), note("b", "x"), warning("c", "x", "y", "z")]) == 0
    assert exit_code([ok("a", "x"), problem("d", "x", "y", "z")]) == 1


# --- this machine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "writable", "needed", "said"),
    [
        (100 * GIB, True, 0, "ok"),
        (100 * GIB, True, 200 * GIB, "problem"),
        (5 * GIB, True, 0, "warning"),
        (GIB, True, 0, "problem"),
        (100 * GIB, False, 0, "problem"),
    ],
)
def test_a_disk_without_room_or_right_is_noticed(free, writable, needed, said):
    assert level(machine.check_disk(DiskFacts("/cache", free, writable), needed)) == said


def test_a_clock_that_was_never_set_is_noticed():
    assert level(machine.check_clock(ClockFacts(5.0))) == "problem"
    assert level(machine.check_clock(ClockFacts(NOW))) == "ok"


def test_a_clock_outside_the_certificates_time_is_noticed_with_how_far():
    before = machine.check_clock(ClockFacts(NOW, NOW + 7200, NOW + 9000))
    after = machine.check_clock(ClockFacts(NOW, NOW - 9000, NOW - 3 * 86400))
    assert levels([before, after]) == ["problem", "problem"]
    assert "2 hours" in before.found
    assert "3 days ago" in after.found
    assert level(machine.check_clock(ClockFacts(NOW, NOW - 60, NOW + 60))) == "ok"


def test_no_runtime_and_two_runtimes_are_noticed():
    assert levels(machine.check_runtime(RuntimeFacts({}))) == ["problem"]
    two = machine.check_runtime(RuntimeFacts({"onnxruntime": "1.31", "onnxruntime-gpu": "1.31"}))
    assert levels(two) == ["problem"]
    assert "onnxruntime-gpu 1.31" in two[0].found
    assert "pip uninstall onnxruntime onnxruntime-gpu" in two[0].do
    assert levels(machine.check_runtime(RuntimeFacts({"onnxruntime": "1.31"}))) == ["ok"]


def test_missing_cuda_libraries_are_named():
    facts = RuntimeFacts({"onnxruntime-gpu": "1.31"}, frozenset({"cuda", "cudart"}), has_nvidia=True)
    (_, lacking) = machine.check_runtime(facts)
    assert level(lacking) == "problem"
    assert "cublas, cudnn" in lacking.found
    whole = dataclasses.replace(facts, libraries=frozenset({"cuda", "cudart", "cublas", "cudnn"}))
    assert levels(machine.check_runtime(whole)) == ["ok"]


def test_a_gpu_that_stays_unused_and_a_missing_vulkan_loader_are_noticed():
    unused = RuntimeFacts({"onnxruntime": "1.31"}, has_nvidia=True)
    assert levels(machine.check_runtime(unused)) == ["ok", "note"]
    deaf = RuntimeFacts({"onnxruntime": "1.31", "onnxruntime-ep-webgpu": "1.31"})
    assert levels(machine.check_runtime(deaf)) == ["ok", "problem"]
    assert levels(machine.check_runtime(dataclasses.replace(deaf, libraries=frozenset({"vulkan"})))) == ["ok"]


def test_a_port_is_free_ours_or_somebody_elses():
    assert level(machine.check_port(PortFacts("0.0.0.0:7420"))) == "ok"
    assert level(machine.check_port(PortFacts("0.0.0.0:7420", "hyperlane"))) == "ok"
    assert level(machine.check_port(PortFacts("0.0.0.0:7420", "by nginx (process 5)"))) == "warning"


def test_an_identity_is_whole_missing_or_in_trouble():
    assert level(machine.check_identity(IdentityFacts("ab" * 16, "cd" * 8))) == "ok"
    assert level(machine.check_identity(IdentityFacts("ab" * 16))) == "note"
    assert level(machine.check_identity(IdentityFacts(trouble="it was copied from another machine"))) == "problem"


# --- interfaces ----------------------------------------------------------------------------------------------


def interface(name: str, address: str, **facts) -> Interface:
    one = ipaddress.ip_interface(address)
    return Interface(name, 2, (Network(one.ip, one.network.prefixlen),), **facts)


WIRED = interface("eth0", "192.168.1.5/24", physical=True, speed_mbit=1000)
WIFI = interface("wlan0", "192.168.2.5/24", physical=True, wireless=True)
DOCKER = interface("docker0", "172.17.0.1/16", physical=False)
VPN = interface("wg0", "10.8.0.2/24", physical=False)
LOOP = interface("lo", "127.0.0.1/8", multicast=False)


def test_a_machine_with_virtual_interfaces_alone_has_no_lan():
    assert levels(network.check_interfaces([LOOP, DOCKER, VPN])) == ["problem"]
    (fine,) = network.check_interfaces([LOOP, DOCKER, VPN, WIRED])
    assert level(fine) == "ok"
    assert fine.found.startswith("eth0 is tried first; in order: eth0 (wired, 1000 Mbit/s), wg0 (vpn), docker0")


def test_a_wireless_only_machine_is_told_what_that_costs():
    assert levels(network.check_interfaces([WIFI])) == ["ok", "note"]


def test_an_interface_that_the_configuration_names_and_is_not_there_is_noticed():
    assert levels(network.check_interfaces([WIRED], ["enp9s0"])) == ["problem"]


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("0.0.0.0", "ok"),
        ("192.168.1.5", "ok"),
        ("127.0.0.1", "note"),
        ("172.17.0.1", "warning"),
        ("10.8.0.2", "warning"),
        ("192.168.1.6", "problem"),
    ],
)
def test_a_worker_on_the_wrong_interface_is_noticed(host, said):
    assert level(network.check_listen(host, [LOOP, WIRED, DOCKER, VPN])) == said


# --- multicast and peers -------------------------------------------------------------------------------------


def path(host: str = "192.168.1.9", reach: Reach = Reach.OPEN, **facts) -> PathFacts:
    rtt_s = 0.0004 if reach is Reach.OPEN else None
    return PathFacts(
        host, facts.pop("interface", "eth0"), InterfaceKind.WIRED, reach, facts.pop("rtt_s", rtt_s), **facts
    )


def peer(*paths: PathFacts, heard: bool = True, **facts) -> PeerFacts:
    return PeerFacts("desk", 7420, heard, paths, **facts)


HEARS = MulticastFacts("eth0", heard_self=True, others=1)


def test_multicast_that_works_is_said():
    assert levels(network.check_multicast([HEARS], [peer(path())])) == ["ok"]


def test_multicast_that_the_own_firewall_drops_is_told_from_mdns_that_does_not_start():
    deaf, broken = MulticastFacts("eth0"), MulticastFacts("eth0", error="Address already in use")
    first, second = network.check_multicast([deaf], []), network.check_multicast([broken], [])
    assert levels([*first, *second]) == ["warning", "warning"]
    assert "firewall" in first[0].means
    assert "Address already in use" in second[0].found


def test_a_machine_that_answers_but_is_not_heard_means_that_multicast_is_lost_between():
    (_, lost) = network.check_multicast([HEARS], [peer(path(), heard=False)])
    assert level(lost) == "warning"
    assert "desk answers at 192.168.1.9 over eth0" in lost.found
    assert "HYPERLANE_DISCOVERY_ADDRESSES" in lost.do


def test_a_machine_beyond_a_router_is_not_expected_to_be_heard():
    assert levels(network.check_multicast([HEARS], [peer(path(interface=""), heard=False)])) == ["ok"]


@pytest.mark.parametrize(
    ("reach", "words"),
    [
        (Reach.CLOSED, "nothing listens on port 7420"),
        (Reach.SILENT, "firewall"),
        (Reach.NO_HOST, "client isolation"),
        (Reach.NO_ROUTE, "another network"),
    ],
)
def test_why_a_machine_is_not_reached_is_told(reach, words):
    (finding,) = network.check_peer(peer(path(reach=reach)))
    assert level(finding) == "problem"
    assert words in f"{finding.found} {finding.means}"


def test_the_reason_that_tells_most_is_given_when_several_ways_fail():
    (finding,) = network.check_peer(peer(path("10.0.0.9", Reach.NO_HOST), path(reach=Reach.CLOSED)))
    assert "nothing listens" in finding.found


def test_a_machine_whose_addresses_are_on_none_of_our_networks_is_noticed():
    assert levels(network.check_peer(peer())) == ["problem"]


def test_of_several_ways_the_faster_is_named():
    slow = path(interface="wlan0", speed_mbit=300, rtt_s=0.004)
    fast = path("10.0.0.9", interface="eth1", speed_mbit=10000, rtt_s=0.0002)
    good = network.check_peer(peer(fast, slow))
    bad = network.check_peer(peer(slow, fast))
    assert levels(good) == ["ok", "note"]
    assert levels(bad) == ["ok", "warning"]
    assert "wlan0 is tried first, but eth1 is faster" in bad[1].means
    assert bad[1].do.endswith("HYPERLANE_DISCOVERY_INTERFACES=eth1")


@pytest.mark.parametrize(("offset_s", "said"), [(0.2, ["ok"]), (-60.0, ["ok", "warning"]), (4000.0, ["ok", "problem"])])
def test_another_machines_clock_that_is_off_is_noticed(offset_s, said):
    assert levels(network.check_peer(peer(path(), clock_offset_s=offset_s))) == said


# --- who else is there ---------------------------------------------------------------------------------------

ADVERT = Advert(NodeId(bytes(16)), "a" * 16, "c" * 16, "desk", NodeKind.WORKER, "0.1.0", 1, 7420)


def heard(interface_name: str = "eth0", **changes) -> Heard:
    return Heard(interface_name, "label", dataclasses.replace(ADVERT, **changes), ("192.168.1.9",))


def test_machines_of_another_version_are_named():
    found = network.check_versions([heard(), heard(protocol=2, version="2.0"), heard(version="0.1.1")], "0.1.0", 1)
    assert levels(found) == ["note", "problem"]
    assert "update this machine" in found[1].do


def test_heads_that_are_heard_are_named_with_what_to_do():
    head = heard(kind=NodeKind.HEAD)
    (ours,), (theirs,), (joinable,) = (network.check_heads([head, heard()], one) for one in ("c" * 16, "d" * 16, ""))
    assert levels([ours, theirs, joinable]) == ["ok", "note", "note"]
    assert "--join" in joinable.do


def test_two_machines_with_one_identity_are_named():
    assert network.check_duplicates([heard(), heard("eth1")], "", "", "me") == []
    (found,) = network.check_duplicates([heard(), heard(machine="b" * 16, name="lap")], "", "", "me")
    assert level(found) == "problem"
    assert "desk and lap" in found.found


def test_a_machine_with_our_own_identity_is_named():
    (found,) = network.check_duplicates([heard()], bytes(16).hex(), "b" * 16, "me")
    assert "desk and this machine (me)" in found.found
    assert network.check_duplicates([heard()], bytes(16).hex(), "a" * 16, "me") == []
