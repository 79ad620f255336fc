from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hyperlane.cli import service as services
from hyperlane.cli.main import app
from hyperlane.cli.units import NAME, Unit, quoted

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = Unit(["/opt/hyperlane/bin/python", "-m", "hyperlane", "worker"], run_as="hyperlane")


def run(*words: str):
    return CliRunner().invoke(app, ["service", *words])


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home of its own, with a `systemctl` that writes down what it is asked."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(services, "SYSTEM_FOLDER", tmp_path / "etc")
    tools = tmp_path / "bin"
    tools.mkdir()
    fake = tools / "systemctl"
    fake.write_text('#!/bin/sh\necho "$*" >> "$HOME/asked"\n[ ! -e "$HOME/broken" ] || { echo no bus >&2; exit 1; }\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def asked(home: Path) -> list[str]:
    return (home / "asked").read_text().splitlines()


posix = pytest.mark.skipif(os.name != "posix", reason="systemd is of Linux")


@posix
def test_installing_writes_the_unit_enables_and_starts_it(home):
    ran = run("install")
    assert ran.exit_code == 0, ran.output
    unit = (home / ".config/systemd/user" / NAME).read_text()
    assert f"ExecStart={sys.executable} -m hyperlane worker\n" in unit
    assert "WantedBy=default.target" in unit
    assert asked(home) == ["--user daemon-reload", f"--user enable {NAME}", f"--user restart {NAME}"]


@posix
def test_the_directories_are_those_of_who_installs_it(home):
    unit = run("install", "--print").stdout
    assert f"Environment=HYPERLANE_PATHS_STATE={os.environ['HYPERLANE_HOME']}/state" in unit
    assert not (home / "asked").exists()


@posix
def test_a_system_service_has_a_user_and_waits_for_the_network(home):
    ran = run("install", "--system", "--run-as", "ada")
    assert ran.exit_code == 0, ran.output
    unit = (home / "etc" / NAME).read_text()
    assert "User=ada\n" in unit
    assert "After=network-online.target" in unit
    assert asked(home)[0] == "daemon-reload"


@posix
def test_a_system_service_of_nobody_is_refused(home, monkeypatch):
    monkeypatch.delenv("SUDO_USER", raising=False)
    ran = run("install", "--system")
    assert ran.exit_code == 2
    assert "--run-as" in ran.stderr


@posix
def test_uninstalling_stops_and_removes_it(home):
    run("install")
    ran = run("uninstall")
    assert ran.exit_code == 0, ran.output
    assert not (home / ".config/systemd/user" / NAME).exists()
    assert asked(home)[-2:] == [f"--user disable --now {NAME}", "--user daemon-reload"]
    assert run("uninstall").exit_code == 2


@posix
def test_what_systemd_refuses_is_told(home):
    (home / "broken").touch()
    ran = run("install")
    assert ran.exit_code == 2
    assert "no bus" in ran.stderr


@posix
def test_without_systemd_the_other_ways_are_named(home, monkeypatch):
    monkeypatch.setenv("PATH", str(home))
    ran = run("status")
    assert ran.exit_code == 2
    assert "launchd" in ran.stderr


# --- the unit ------------------------------------------------------------------------------------------------


def test_the_sample_in_deploy_is_what_is_written():
    assert (ROOT / "deploy/systemd" / NAME).read_text(encoding="utf-8") == SAMPLE.text()


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/usr/bin/python3.11", "/usr/bin/python3.11"),
        ("A=b c", '"A=b c"'),
        ("100%", '"100%%"'),
        ("$HOME", '"$$HOME"'),
        ('say "hi"\\', '"say \\"hi\\"\\\\"'),
        ("", '""'),
    ],
)
def test_words_reach_systemd_as_they_are(word, written):
    assert quoted(word) == written


def test_a_line_of_ones_own_cannot_be_smuggled_into_the_unit():
    with pytest.raises(ValueError, match="control character"):
        Unit(["a\nUser=root"]).text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("run_as", [None, "root"])
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path, run_as):
    unit = tmp_path / NAME
    unit.write_text(Unit([sys.executable, "-m", "hyperlane", "worker"], {"HYPERLANE_HOME": "/a b"}, run_as).text())
    mode = [] if run_as else ["--user"]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    said = subprocess.run(
        ["systemd-analyze", *mode, "verify", str(unit)], capture_output=True, text=True, check=False, env=environ
    )
    about_us = [line for line in said.stderr.splitlines() if NAME in line]
    assert not about_us


@posix
def test_a_service_lends_the_devices_that_are_asked_for(home):
    assert (
        "hyperlane worker --devices cuda:0,cuda:1\n" in run("install", "--print", "--devices", "CUDA:0, cuda:1").stdout
    )
    refused = run("install", "--devices", "cuda:first")
    assert refused.exit_code == 2
    assert not (home / "asked").exists()
