"""What the doctor sees of a machine, provoked on this one."""

from __future__ import annotations

import shutil
import socket
import sys

import pytest

from hyperlane.cluster.doctor import look
from hyperlane.cluster.doctor import machine_checks as machine
from hyperlane.cluster.trust.binding import Machine
from hyperlane.cluster.trust.head_trust import HeadTrust
from hyperlane.core import Address

HERE, THERE = Machine("named", "here"), Machine("named", "there")


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """An environment in which exactly these distributions are installed."""

    def install(*names: str) -> None:
        for name in names:
            info = tmp_path / f"{name.replace('-', '_')}-1.31.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.0\n", encoding="ascii")
        monkeypatch.setattr(sys, "path", [str(tmp_path)])

    return install


def levels(findings) -> list[str]:
    return [str(one.level) for one in findings]


def test_an_environment_without_a_runtime_is_seen(environment):
    environment("numpy")
    assert levels(machine.check_runtime(look.runtime())) == ["problem"]


def test_an_environment_with_two_runtimes_is_seen(environment):
    environment("onnxruntime", "onnxruntime-gpu")
    (found,) = machine.check_runtime(look.runtime())
    assert "2 ONNX Runtimes are installed: onnxruntime 1.31.0, onnxruntime-gpu 1.31.0" in found.found


def test_a_missing_vulkan_loader_and_missing_cuda_libraries_are_seen(environment, monkeypatch):
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    environment("onnxruntime-gpu", "onnxruntime-ep-webgpu", "nvidia-cudnn-cu12")
    _, cuda, webgpu = machine.check_runtime(look.runtime())
    assert "not found: cuda, cudart, cublas" in cuda.found
    assert "cudnn" not in cuda.found.partition("not found")[2]
    assert "Vulkan" in webgpu.found


def test_a_disk_is_measured_where_the_folder_will_be(tmp_path):
    facts = look.disk(tmp_path / "not" / "yet" / "there")
    assert facts.writable
    assert abs(facts.free_bytes - shutil.disk_usage(tmp_path).free) < 1 << 30
    assert str(machine.check_disk(facts, needed_bytes=facts.free_bytes * 2).level) == "problem"


def test_a_port_that_a_program_holds_is_seen():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = Address("127.0.0.1", holder.getsockname()[1])
        assert look.port(taken).taken is not None
    assert look.port(taken).taken is None


def test_a_machine_that_has_joined_nothing_has_no_identity_and_gets_none(tmp_path):
    facts, credentials = look.identity(tmp_path / "trust", HERE)
    assert (facts.node, facts.cluster, facts.trouble, credentials) == ("", "", "", None)
    assert not (tmp_path / "trust").exists()


def test_an_identity_and_its_copy_are_seen(tmp_path):
    trust = HeadTrust(tmp_path / "trust", machine=HERE)
    facts, credentials = look.identity(tmp_path / "trust", HERE)
    assert facts.node == trust.node.hex()
    assert credentials is not None
    assert str(machine.check_clock(look.clock(credentials)).level) == "ok"
    copy, nothing = look.identity(tmp_path / "trust", THERE)
    assert "copied from another machine" in copy.trouble
    assert nothing is None
