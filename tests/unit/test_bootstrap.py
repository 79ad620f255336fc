from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bootstrap.py"


@pytest.fixture
def bootstrap():
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_old_python_is_told_which_one_is_wanted(bootstrap, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert "is Python 3.9, and Hyperlane needs 3.11" in bootstrap.complaint()


def test_a_missing_venv_module_is_told_with_the_package_to_install(bootstrap, monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    assert "apt-get install python3-venv" in bootstrap.complaint()


def test_this_python_will_do(bootstrap):
    assert bootstrap.complaint() == ""


def test_a_refusal_leaves_no_folder(bootstrap, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", str(tmp_path / "env")])
    assert bootstrap.main() == 1
    assert not (tmp_path / "env").exists()
    assert capsys.readouterr().err.startswith("bootstrap: ")
