"""Models of a hub as a user names them: the real command line, and the hub's own library against a hub of the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyperlane.testing.hub import HubStandIn
from hyperlane.testing.program import Program

REPO = "owner/tiny-GGUF"
MODEL = f"hf.co/{REPO}:Q4_0"

Hyperlane = Callable[..., Program]


@pytest.fixture
def hub(tiny_model: str) -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        content = Path(tiny_model).read_bytes()
        stand_in.add(REPO, {"tiny-Q4_0.gguf": content, "tiny-Q8_0.gguf": content + b" ", "README.md": b"about"})
        yield stand_in


@pytest.fixture
def hyperlane(hub: HubStandIn, tmp_path: Path) -> Hyperlane:
    """Runs the program to its end, with a home of its own and the test's hub."""

    def run(*arguments: str, **environ: str) -> Program:
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""}
        with Program(*arguments, home=tmp_path / "home", environ=variables | environ) as program:
            program.end_input()
            program.code = program.wait()
        return program

    return run


def test_a_model_of_a_hub_is_pulled_listed_run_without_the_hub_and_removed(hub, hyperlane, tmp_path):
    pulled = hyperlane("pull", MODEL)
    assert pulled.code == 0, pulled.stderr
    path = Path(pulled.stdout.strip())
    assert path.read_bytes() == hub.repositories[REPO].files["tiny-Q4_0.gguf"]
    assert tmp_path / "home" in path.parents
    listed = json.loads(hyperlane("models", "--json").stdout)
    (row,) = [row for row in listed if row["installed"]]
    assert (row["name"], row["path"]) == (f"hf.co/{REPO}:tiny-Q4_0.gguf", str(path))
    asked = len(hub.asked)
    ran = hyperlane("run", MODEL, "the ring", "--raw", "-n", "4", "-q", "--offline")
    assert ran.code == 0, ran.stderr
    assert ran.stdout
    assert len(hub.asked) == asked
    kept = hyperlane("rm", MODEL)
    assert (kept.code, path.exists()) == (2, True)
    assert "say --yes" in kept.stderr
    removed = hyperlane("rm", MODEL, "--yes")
    assert removed.code == 0, removed.stderr
    assert not path.exists()


def test_what_cannot_be_had_is_told_in_a_line_with_an_exit_code(hub, hyperlane, tiny_model):
    several = hyperlane("run", f"hf.co/{REPO}", "x")
    assert (several.code, several.stdout) == (2, "")
    assert ":Q4_0" in several.stderr
    assert ":Q8_0" in several.stderr
    missing = hyperlane("pull", "hf.co/owner/nothing")
    assert missing.code == 2
    assert "private" in missing.stderr
    hub.add("owner/gated", {"m.gguf": b"x" * 5000}, token="hf_granted", gated=True)
    gated = hyperlane("pull", "hf.co/owner/gated")
    assert gated.code == 7
    assert "HF_TOKEN" in gated.stderr
    unplugged = hyperlane("pull", MODEL, HF_ENDPOINT="http://127.0.0.1:1")
    assert unplugged.code == 7
    assert "cannot be reached" in unplugged.stderr
    mine = hyperlane("rm", tiny_model, "--yes")
    assert mine.code == 2
    assert "your own file" in mine.stderr
    assert Path(tiny_model).exists()
