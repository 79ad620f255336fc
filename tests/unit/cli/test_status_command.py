from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from hyperlane.api import HttpServer, bind_socket, create_app
from hyperlane.cli.main import app
from hyperlane.config import ApiConfig
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
