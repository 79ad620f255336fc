"""A model of a hub over workers that do not have it: nobody downloads it whole, each fetches its own layers alone."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperlane.cluster.announce import Child
from hyperlane.core import Address
from hyperlane.models.gguf_file import GgufFile
from hyperlane.testing.hub import HubStandIn
from hyperlane.testing.program import Program
from hyperlane.testing.tiny_models import write_tiny_model

REPO = "owner/tiny-GGUF"
MODEL = f"hf.co/{REPO}:Q4_0"
LAYERS = 30
READY_WITHIN_S = 60.0
ASKED = ("the ring", "--raw", "-n", "6", "-t", "0", "-q", "--slots", "1", "--context", "64")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Thirty equal layers, 10 MB."""
    return write_tiny_model(tmp_path_factory.mktemp("hub") / "tiny-Q4_0.gguf", layers=LAYERS, hidden=256, ffn=512)


@pytest.fixture
def hub(model: Path) -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        stand_in.add(REPO, {"tiny-Q4_0.gguf": model.read_bytes()})
        yield stand_in


class Workers:
    """Workers as if on other machines: each with files and a token of its own, by which the hub knows it."""

    def __init__(self, hub: HubStandIn, folder: Path) -> None:
        self._hub, self._folder = hub, folder
        self._children: list[Child] = []
        self.addresses: dict[str, Address] = {}

    def start(self, *names: str) -> None:
        for name in names:
            variables = environment(self._hub, self._folder / name, name)
            command = [sys.executable, "-m", "hyperlane", "worker", "--listen", "127.0.0.1:0", "--announce"]
            child = Child([*command, "--threads", "1"], self._folder / f"{name}.log", variables)
            self._children.append(child)
        for name, child in zip(names, self._children[-len(names) :], strict=True):
            self.addresses[name] = child.announcement(time.monotonic() + READY_WITHIN_S).address

    def stop(self) -> None:
        for child in self._children:
            child.stop(time.monotonic() + 10)
        self._children.clear()

    def flags(self, **layers: str) -> list[str]:
        """What names them to a head, and puts layers on them."""
        named = [flag for name in layers for flag in ("--worker", str(self.addresses[name]))]
        return named + [f for name, part in layers.items() for f in ("--layers", f"{self.addresses[name]}={part}")]


def environment(hub: HubStandIn, home: Path, name: str) -> dict[str, str]:
    own = {"HYPERLANE_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_TOKEN": f"hf_{name}", "HF_HOME": str(home / "hf")}
    return {**os.environ, **own}


@pytest.fixture
def workers(hub: HubStandIn, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(hub, tmp_path)
    yield started
    started.stop()


def run(hub: HubStandIn, home: Path, *arguments: str) -> str:
    """Standard output of a head that ran to its end."""
    with Program(*arguments, home=home, environ=environment(hub, home, "head")) as program:
        program.end_input()
        code = program.wait()
    assert code == 0, program.stderr
    return program.stdout


def layer_bytes(model: Path) -> int:
    """The bytes of one layer's tensors."""
    with GgufFile(model) as file:
        return sum(file.info(name).nbytes for name in file.names() if name.startswith("blk.0."))


def test_each_worker_fetches_its_own_layers_from_the_hub_and_nobody_the_whole_file(hub, workers, model, tmp_path):
    workers.start("first", "middle", "last")
    parts = workers.flags(first="0:14", middle="14:16", last="16:30")
    spread = run(hub, tmp_path / "head", "run", MODEL, *ASKED, *parts)
    assert spread == run(hub, tmp_path / "alone", "run", str(model), *ASKED)

    one = layer_bytes(model)
    assert hub.bytes_sent("Q4_0.gguf", "hf_middle") == 2 * one
    ends = hub.bytes_sent("Q4_0.gguf", "hf_first"), hub.bytes_sent("Q4_0.gguf", "hf_last")
    with GgufFile(model) as file:
        embedding, *outer = (file.info(n).nbytes for n in ("token_embd.weight", "output.weight", "output_norm.weight"))
    assert ends == (14 * one + embedding, 14 * one + sum(outer))
    assert hub.bytes_sent("Q4_0.gguf", "hf_head") <= 1 << 20
    assert not [path for path in tmp_path.rglob("*.gguf") if path != model]


def test_a_second_start_asks_the_hub_for_no_byte_of_the_file(hub, workers, model, tmp_path):
    workers.start("first", "last")
    parts = workers.flags(first="0:15", last="15:30")
    before = run(hub, tmp_path / "head", "run", MODEL, *ASKED, *parts)
    sent = hub.bytes_sent("Q4_0.gguf")
    assert run(hub, tmp_path / "head", "run", MODEL, *ASKED, *parts) == before
    assert hub.bytes_sent("Q4_0.gguf") == sent


def test_a_plan_reads_the_header_alone(hub, tmp_path):
    planned = run(hub, tmp_path / "head", "plan", MODEL, "--local-workers", "2", "--json")
    assert json.loads(planned)
    assert hub.bytes_sent("Q4_0.gguf") <= 1 << 20
