from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from hyperlane import summary
from hyperlane.api import HttpServer, bind_socket, create_app
from hyperlane.cli import status as status_command
from hyperlane.cli.main import app
from hyperlane.config import ApiConfig
from hyperlane.core import Address, HeadStatus, NodeStatus
from hyperlane.errors import ClusterError
from hyperlane.plain import plain, revive
from hyperlane.testing.fake_generator import FakeGenerator


@pytest.fixture
def url(monkeypatch, tmp_path):
    monkeypatch.setenv("HYPERLANE_HOME", str(tmp_path))
    config = ApiConfig(port=0, key=("secret",))
    server = HttpServer(create_app(FakeGenerator(), config), bind_socket(config.host, config.port), config)
    server.start()
    yield server.url
    server.stop()


def test_status_shows_what_a_server_says_of_itself(url):
    ran = CliRunner().invoke(app, ["status", "--url", url, "--api-key", "secret"])
    assert ran.exit_code == 0, ran.output
    assert "toy: ready" in ran.stdout


def test_status_as_json_holds_the_plan(url, monkeypatch):
    monkeypatch.setenv("HYPERLANE_API_KEY", "secret")
    ran = CliRunner().invoke(app, ["status", "--url", f"{url}/v1", "--json"])
    assert ran.exit_code == 0, ran.output
    assert len(json.loads(ran.stdout)["plan"]["stages"]) == 2


def test_status_of_a_server_with_a_key_says_that_one_is_wanted(url):
    ran = CliRunner().invoke(app, ["status", "--url", url])
    assert ran.exit_code == 2
    assert "--api-key" in ran.stderr


def test_the_program_says_its_version_and_its_commands():
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("hyperlane ")
    helped = CliRunner().invoke(app, ["--help"]).stdout
    for name in ("run", "chat", "serve", "worker", "plan", "status", "pull", "models"):
        assert f" {name} " in helped


def test_an_unknown_command_is_exit_code_2():
    assert CliRunner().invoke(app, ["serv"]).exit_code == 2


def test_a_watched_status_is_shown_again_and_again_and_a_server_that_is_away_ends_nothing(url, monkeypatch):
    shown = []

    def pause(_seconds):
        shown.append(1)
        if len(shown) == 3:
            raise KeyboardInterrupt
        if len(shown) == 2:
            monkeypatch.setattr(status_command, "fetch", away)

    def away(address, _key):
        raise ClusterError(f"nothing answers at {address}")

    monkeypatch.setattr(status_command.time, "sleep", pause)
    ran = CliRunner().invoke(app, ["status", "--url", url, "--api-key", "secret", "--watch"])
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.count("toy: ready") == 2
    assert "nothing answers" in ran.stdout


def test_nodes_are_shown_with_how_they_were_found_and_what_is_wrong():
    nodes = (
        NodeStatus(
            "desk",
            "ab" * 16,
            Address("10.0.0.9", 7420),
            "ready",
            ("mdns (lan0)",),
            True,
            "cpu",
            "0.1",
            2 << 30,
            1 << 30,
            310.0,
        ),
        NodeStatus("lap", "cd" * 16, None, "joining", ("static (10.0.0.7:7420)",), reason="nothing answers"),
    )
    shown = summary.status_text(replace(FakeGenerator().status(), nodes=nodes, troubles=("two machines, one node",)))
    assert "desk  ready" in shown
    assert "0.31 ms" in shown
    assert "mdns (lan0)" in shown
    assert "lap: nothing answers" in shown
    assert shown.endswith("two machines, one node")


def test_a_status_with_nodes_survives_the_way_over_http():
    node = NodeStatus("desk", "ab" * 16, Address("10.0.0.9", 7420), "ready", ("mdns (lan0)",))
    status = replace(FakeGenerator().status(), nodes=(node,))
    assert revive(HeadStatus, json.loads(json.dumps(plain(status)))) == status
