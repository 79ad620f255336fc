"""A model of a hub over workers that do not have it: nobody downloads it whole, each fetches its own layers alone."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hyperlane import config
from hyperlane.cluster.announce import Child
from hyperlane.core import Address, ModelFacts
from hyperlane.errors import TransferError
from hyperlane.models import layout
from hyperlane.models.checkpoint import Checkpoint
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.weights import TensorSource
from hyperlane.node import start_serving
from hyperlane.testing.checkpoints import write_checkpoint
from hyperlane.testing.hub import HubStandIn
from hyperlane.testing.program import Program
from hyperlane.testing.tiny_models import write_tiny_model

REPO = "owner/tiny-GGUF"
MODEL = f"hf.co/{REPO}:Q4_0"
LAYERS = 30
READY_WITHIN_S = 60.0
TOY = (str(Path(__file__).with_name("toy_worker.py")),)
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

    def start(self, *names: str, command: Sequence[str] = ("-m", "hyperlane", "worker"), **environ: str) -> None:
        for name in names:
            variables = environment(self._hub, self._folder / name, name) | environ
            arguments = [sys.executable, *command, "--listen", "127.0.0.1:0", "--announce", "--threads", "1"]
            child = Child(arguments, self._folder / f"{name}.log", variables)
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


def run(hub: HubStandIn, home: Path, *arguments: str, **environ: str) -> str:
    """Standard output of a head that ran to its end."""
    with Program(*arguments, home=home, environ=environment(hub, home, "head") | environ) as program:
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

    sent = hub.bytes_sent("Q4_0.gguf")
    unplugged = {"HF_ENDPOINT": "http://127.0.0.1:1"}
    assert run(hub, tmp_path / "head", "run", MODEL, *ASKED, *parts, **unplugged) == spread
    assert hub.bytes_sent("Q4_0.gguf") == sent, "a second start asks for no byte, and needs no hub"


@pytest.mark.slow
def test_layers_that_move_to_another_worker_come_from_the_one_that_has_them(hub, workers, model, tmp_path):
    workers.start("first", "second")
    run(hub, tmp_path / "head", "run", MODEL, *ASKED, *workers.flags(first="0:16", second="16:30"))
    sent = hub.bytes_sent("Q4_0.gguf")
    moved = run(hub, tmp_path / "head", "run", MODEL, *ASKED, *workers.flags(first="0:10", second="10:30"))
    assert moved == run(hub, tmp_path / "alone", "run", str(model), *ASKED)
    assert hub.bytes_sent("Q4_0.gguf") == sent, "the hub sends nothing that a worker has"


def test_a_plan_reads_the_header_alone(hub, tmp_path):
    planned = run(hub, tmp_path / "head", "plan", MODEL, "--local-workers", "2", "--json")
    assert json.loads(planned)
    assert hub.bytes_sent("Q4_0.gguf") <= 1 << 20


# --- workers without an engine, which read their weights and tell what came --------------------------------


@pytest.fixture
def serve(hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Loads a model into the toy workers `a` (the first two layers) and `b`; what each has read, as a hash."""
    monkeypatch.setattr("hyperlane.models.hub.endpoint", lambda: hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_head")
    told = tmp_path / "told"
    told.mkdir()

    def load(model: str, workers: Workers) -> list[str]:
        a, b = workers.addresses["a"], workers.addresses["b"]
        settings = {"layers": (f"{a}=0:2", f"{b}=2:{LAYERS}"), "paths": config.Paths.under(tmp_path / "head")}
        with start_serving(config.load(config.ServeConfig, model=model, workers=(a, b), **settings)) as serving:
            assert serving.service.ready()
        return [(told / f"stage-{index}").read_text() for index in range(2)]

    load.told = str(told)
    return load


def start_toys(workers: Workers, serve, *names: str) -> None:
    workers.start(*names, command=TOY, HYPERLANE_TEST_DIGESTS=serve.told)


def expected(source: TensorSource, facts: ModelFacts) -> list[str]:
    """What toy workers tell after they have read these weights."""
    names = [layout.embedding_layout(facts).tensors, *(layout.layer_layout(facts, n).tensors for n in range(LAYERS))]
    stages = [[*names[0], *names[1], *names[2]], [*(n for unit in names[3:] for n in unit)]]
    stages[1] += layout.output_layout(facts).tensors
    return [hashlib.sha256(b"".join(bytes(source.read(name)) for name in stage)).hexdigest() for stage in stages]


@pytest.mark.slow
def test_a_checkpoint_in_several_files_is_read_in_ranges_and_storage_that_breaks_off_is_asked_again(
    hub, workers, serve, tmp_path, model
):
    folder = write_checkpoint(model, tmp_path / "checkpoint", shards=3)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add("owner/checkpoint", files)
    shards = [content for name, content in files.items() if name.endswith(".safetensors")]
    breaks = iter([-100_000, 503, None, -1])
    hub.fault = lambda _method, path: next(breaks, None) if path.startswith("/storage/") else None
    start_toys(workers, serve, "a", "b")
    loaded = serve("hf.co/owner/checkpoint", workers)
    with Checkpoint(folder) as whole:
        assert loaded == expected(whole, whole.facts)
        needed = sum(whole.info(name).nbytes for name in whole.names() if name.startswith(("blk.0.", "blk.1.", "tok")))
    assert needed <= hub.bytes_sent(".safetensors", "hf_a") <= needed * 1.05, "what broke off was kept"
    assert hub.bytes_sent(".safetensors") < sum(map(len, shards)) * 1.1


def test_a_worker_that_has_pulled_the_model_asks_for_no_byte_of_it(hub, workers, serve, tmp_path, model):
    run(hub, tmp_path / "a", "pull", MODEL)
    sent = hub.bytes_sent("Q4_0.gguf", "hf_head")
    start_toys(workers, serve, "a", "b")
    loaded = serve(MODEL, workers)
    with GgufFile(model) as whole:
        assert loaded == expected(whole, read_facts(whole))
    assert hub.bytes_sent("Q4_0.gguf", "hf_a") == 0
    assert hub.bytes_sent("Q4_0.gguf", "hf_head") - sent <= 1 << 20


@pytest.mark.slow
def test_a_worker_without_access_to_a_gated_model_says_which_token_is_missing_where(hub, workers, serve):
    hub.repositories[REPO].token, hub.repositories[REPO].gated = "hf_head", True
    start_toys(workers, serve, "a", "b")
    with pytest.raises(TransferError, match=r"refuses it \(403\).*HF_TOKEN.*on every machine"):
        serve(MODEL, workers)
