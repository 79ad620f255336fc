from __future__ import annotations

import dataclasses
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlane.cluster.discovery.advert import Advert, BadAdvert, NodeKind, read_advert, txt_of
from hyperlane.cluster.discovery.candidates import Candidates
from hyperlane.cluster.discovery.interfaces import Interface, InterfaceKind, Network, suitable, ways_to
from hyperlane.cluster.discovery.machine_hash import machine_hash
from hyperlane.cluster.membership import Means, MemberId, Source
from hyperlane.cluster.trust.binding import Machine
from hyperlane.core import Address, NodeId

ADVERT = Advert(NodeId(bytes(range(16))), "0" * 16, "c" * 16, "desk:7420", NodeKind.WORKER, "0.1.0", 1, 7420, 7421)


def raw(advert: Advert = ADVERT, **changes: bytes | None) -> dict[bytes, bytes | None]:
    txt: dict[bytes, bytes | None] = {key.encode(): value.encode() for key, value in txt_of(advert).items()}
    txt.update({key.encode(): value for key, value in changes.items()})
    return txt


def interface(name: str, *networks: str, **facts) -> Interface:
    parsed = [ipaddress.ip_interface(text) for text in networks]
    return Interface(
        name, facts.pop("index", 2), tuple(Network(one.ip, one.network.prefixlen) for one in parsed), **facts
    )


# --- adverts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "advert", [ADVERT, dataclasses.replace(ADVERT, kind=NodeKind.HEAD, machine="", cluster="", data_port=0)]
)
def test_what_is_written_is_read_back(advert):
    assert read_advert(raw(advert), advert.control_port) == advert


def test_keys_of_later_versions_are_left_alone():
    assert read_advert(raw(colour=b"blue", empty=None), 7420) == ADVERT


@pytest.mark.parametrize(
    "changes",
    [
        {"node": b"zz"},
        {"node": None},
        {"node": b"A" * 32},
        {"machine": b"0" * 15},
        {"cluster": b"'; drop table"},
        {"kind": b"toaster"},
        {"version": b"1 \x1b[31m"},
        {"version": b"1" * 33},
        {"protocol": b"-1"},
        {"protocol": "١".encode()},
        {"protocol": b"9999999999"},
        {"data": b"65536"},
        {"name": b"\xff\xfe"},
        {"txtvers": b"2"},
        {"extra": b"x" * 512},
    ],
)
def test_what_none_of_ours_would_send_is_refused(changes):
    with pytest.raises(BadAdvert):
        read_advert(raw(**changes), 7420)


def test_a_port_of_zero_is_refused():
    with pytest.raises(BadAdvert):
        read_advert(raw(), 0)


def test_a_name_cannot_write_to_a_terminal_or_a_log():
    name = read_advert(raw(name="ev\x1b[2Jil\n☠".encode()), 7420).name
    assert name == "ev[2Jil"
    assert read_advert(raw(name=b"\x00"), 7420).name == "unnamed"


@given(st.dictionaries(st.binary(max_size=12), st.none() | st.binary(max_size=80), max_size=12), st.integers(0, 70000))
def test_strangers_bytes_are_read_or_refused(txt, port):
    for given_txt in (txt, {**raw(), **txt}):
        try:
            read_advert(given_txt, port)
        except BadAdvert:
            continue


# --- interfaces ----------------------------------------------------------------------------------------------

WIRED = interface("enp3s0", "192.168.1.5/24", "fe80::5/64", index=2, speed_mbit=1000, physical=True)
FAST = interface("enp4s0", "10.10.0.5/24", index=3, speed_mbit=10000, physical=True)
WIFI = interface("wlp2s0", "192.168.1.77/24", index=4, physical=True, wireless=True)
DOCKER = interface("docker0", "172.17.0.1/16", index=5, physical=False)
VPN = interface("tailscale0", "100.64.0.5/32", index=6, physical=False)
LOOP = interface("lo", "127.0.0.1/8", "::1/128", index=1, physical=False, multicast=False)
ALL = (LOOP, DOCKER, VPN, WIFI, WIRED, FAST)


@pytest.mark.parametrize(
    ("name", "facts", "kind"),
    [
        ("eth0", {"physical": True}, InterfaceKind.WIRED),
        ("eth0", {"physical": False}, InterfaceKind.WIRED),
        ("lan0", {"physical": False}, InterfaceKind.UNKNOWN),
        ("vmbr0", {"physical": True}, InterfaceKind.WIRED),
        ("en0", {}, InterfaceKind.UNKNOWN),
        ("wlan0", {}, InterfaceKind.WIRELESS),
        ("Wi-Fi", {}, InterfaceKind.WIRELESS),
        ("Ethernet 2", {}, InterfaceKind.WIRED),
        ("br-0123456789ab", {"physical": False}, InterfaceKind.VIRTUAL),
        ("veth12ab34", {"physical": False}, InterfaceKind.VIRTUAL),
        ("vEthernet (WSL)", {}, InterfaceKind.VIRTUAL),
        ("VirtualBox Host-Only Network", {}, InterfaceKind.VIRTUAL),
        ("wg0", {}, InterfaceKind.VPN),
        ("utun3", {}, InterfaceKind.VPN),
    ],
)
def test_an_interface_is_known_by_its_name_and_what_is_behind_it(name, facts, kind):
    assert interface(name, "10.0.0.1/24", **facts).kind is kind


def test_cables_come_before_wireless_and_what_is_virtual_last():
    assert [one.name for one in suitable(ALL)] == ["enp4s0", "enp3s0", "wlp2s0", "tailscale0", "docker0"]


def test_loopback_is_used_only_when_told_and_what_is_down_never():
    down = dataclasses.replace(WIRED, is_up=False)
    deaf = dataclasses.replace(FAST, multicast=False)
    assert [one.name for one in suitable((LOOP, down, deaf))] == []
    assert [one.name for one in suitable((LOOP, down, deaf), loopback=True)] == ["lo"]


def test_the_ways_to_a_peer_begin_with_the_fastest_cable():
    hosts = ["172.17.0.9", "192.168.1.9", "fe80::9%2", "10.10.0.9"]
    assert [way.host for way in ways_to(hosts, suitable(ALL))] == [
        "10.10.0.9",
        "192.168.1.9",
        "fe80::9%2",
        "172.17.0.9",
    ]


def test_another_machines_docker_address_that_is_also_ours_is_no_way():
    assert ways_to(["172.17.0.1", "192.168.1.5"], ALL) == ()
    assert [way.host for way in ways_to(["192.168.1.5"], ALL, same_machine=True)] == ["192.168.1.5"]


@pytest.mark.parametrize(
    "host", ["8.8.8.8", "224.0.0.251", "0.0.0.0", "fe80::9", "fe80::9%7", "router.lan", "127.0.0.1", "2001:db8::1"]
)
def test_an_address_on_none_of_our_networks_is_no_way(host):
    assert ways_to([host], suitable(ALL)) == ()


# --- candidates and machines ---------------------------------------------------------------------------------


def test_an_address_that_failed_comes_last_for_a_while():
    member, source = MemberId(NodeId(bytes(16)), 7420), Source(Means.MDNS, "lan0")
    first, second = Address("10.0.0.1", 7420), Address("10.0.0.2", 7420)
    candidates = Candidates()
    candidates.put(member, source, (first, second))
    candidates.failed(member, first, 100.0)
    assert candidates.in_order(member, 101.0) == (second, first)
    assert candidates.in_order(member, 130.0) == (first, second)
    candidates.remove(member, source)
    assert candidates.in_order(member, 130.0) == ()


def test_a_machines_hash_is_stable_and_does_not_tell_the_machines_id():
    one, other = Machine("machine-id", "abc"), Machine("machine-id", "abd")
    assert machine_hash(one) == machine_hash(one) != machine_hash(other)
    assert "abc" not in machine_hash(one)
    assert machine_hash(None) == machine_hash(None)
