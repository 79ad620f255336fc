"""`hyperlane cache`: what it shows, sets and drops."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from hyperlane.cli.main import app

MODEL = "0a" * 32


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HYPERLANE_HOME", str(tmp_path))
    folder = tmp_path / "cache" / "tensors" / MODEL
    folder.mkdir(parents=True)
    (folder / "about.json").write_text(json.dumps({"name": "some-model"}))
    for number in range(4):
        (folder / f"t{number}.bin").write_bytes(bytes(1 << 20))
    return tmp_path


def run(*words: str, code: int = 0) -> str:
    ran = CliRunner().invoke(app, ["cache", *words])
    assert ran.exit_code == code, ran.output
    return ran.stdout


def plain(*words: str):
    return json.loads(run(*words, "--json"))


def test_the_list_has_a_line_for_each_model():
    assert "some-model" in run("list")
    (entry,) = plain("list")
    assert (entry["model"], entry["kind"], entry["bytes"], entry["in_use"]) == (MODEL, "tensors", 4 << 20, False)


def test_a_limit_is_shown_set_kept_and_forgotten():
    assert plain("limit")["limit_bytes"] is None
    assert plain("limit", "2MiB") == {"limit_bytes": 2 << 20, "removed_bytes": 2 << 20}
    assert plain("size") == {"bytes": 2 << 20, "in_use_bytes": 0, "allowed_bytes": 2 << 20, "limit_bytes": 2 << 20}
    assert plain("limit", "none")["limit_bytes"] is None


def test_a_limit_that_is_no_size_is_wrong_use():
    run("limit", "plenty", code=2)


def test_a_limit_of_the_configuration_wins_over_the_one_that_was_set(monkeypatch):
    plain("limit", "2GiB")
    monkeypatch.setenv("HYPERLANE_CACHE_LIMIT", "3MiB")
    assert plain("size")["limit_bytes"] == 3 << 20


def test_clearing_leaves_nothing():
    assert plain("clear") == {"removed_bytes": 4 << 20, "removed": 4}
    assert plain("list") == []
    assert "nothing to remove" in run("prune")
