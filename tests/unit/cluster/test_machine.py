"""What processes of one host have in common."""

from __future__ import annotations

from pathlib import Path

from hyperlane.cluster import machine


def test_a_host_is_one_machine_one_boot_and_one_network(monkeypatch, tmp_path):
    boot, network = tmp_path / "boot", tmp_path / "net"
    boot.write_text("boot-1\n")
    network.write_text("")
    monkeypatch.setattr(machine, "_BOOT_ID", boot)
    monkeypatch.setattr(machine, "_NETWORK", network)
    here = machine.host_id("m0")
    assert machine.host_id("m0") == here
    assert machine.host_id("m1") != here, "another machine"
    kept = network.rename(tmp_path / "kept")
    network.write_text("")
    assert network.stat().st_ino != kept.stat().st_ino
    assert machine.host_id("m0") != here, "a container with a network of its own"
    network.unlink()
    kept.rename(network)
    assert machine.host_id("m0") == here
    boot.write_text("boot-2\n")
    assert machine.host_id("m0") != here, "a copied disk on another machine"


def test_where_the_system_says_nothing_the_machine_decides(monkeypatch):
    monkeypatch.setattr(machine, "_BOOT_ID", Path("/nowhere/boot"))
    monkeypatch.setattr(machine, "_NETWORK", Path("/nowhere/net"))
    assert machine.host_id("m0") == machine.host_id("m0") != machine.host_id("m1")
