"""An exported stage runs in ONNX Runtime alone, and computes what the engine does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hyperlane.config import Paths, ServeConfig
from hyperlane.core import Epoch, HeadId, LayerRange, Row, StageSpec, WeightForm
from hyperlane.errors import ConfigError
from hyperlane.exporting import export_model
from hyperlane.models.source import facts_of, open_model
from hyperlane.stage.export import FILES, export_stage
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import BlockOffsets, EngineOptions
from hyperlane.testing.checkpoints import write_checkpoint
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model
from hyperlane.wire.candidates import split

TOLERANCE = 0.02
"""Of a value's norm, where sums are taken in another order: int8 activations make more of a last bit."""

PROMPT, CONTEXT, TOP_K = 24, 48, 8

ALONE = """
import json, sys
import numpy as np
import onnxruntime as ort

with open("stage.json", encoding="utf-8") as file:
    stage = json.load(file)
options = ort.SessionOptions()
options.intra_op_num_threads = 1
if sys.argv[2] == "plain":
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
session = ort.InferenceSession("model.onnx", options, providers=[stage["provider"]])
names = [value["name"] for value in stage["outputs"]]
given = np.load(sys.argv[1] + ".npz")
cache = {
    value["name"]: np.zeros([1 if size == "batch" else size for size in value["shape"]], value["dtype"])
    for value in stage["inputs"] if value["name"].startswith("past.")
}
found = {}
for step, start in enumerate((0, int(given["prompt"]))):
    x = given[f"step{step}"]
    count = x.shape[1]
    feeds = {
        "tokens": x, "hidden_in": x,
        "lengths": np.array([start + count - 1], np.int32), "total": np.array(start + count, np.int32),
        "wanted": np.array([count - 1]), "inverse_temperature": np.ones((1, 1), np.float32),
        "top_k": np.array([int(given["top_k"])]), "extra": np.zeros(0, np.int64), **cache,
    }
    feeds = {value["name"]: feeds[value["name"]] for value in stage["inputs"]}
    results = dict(zip(names, session.run(names, feeds)))
    cache = {name.replace("present", "past"): value for name, value in results.items() if name.startswith("present")}
    found |= {f"{step}.{name}": value for name, value in results.items() if not name.startswith("present")}
assert not any(name.partition(".")[0] == "hyperlane" for name in sys.modules)
np.savez(sys.argv[1] + ".out.npz", **found)
"""


def specs(facts) -> list[StageSpec]:
    bounds = (0, 1, 2, facts.layers)
    return [
        StageSpec(
            facts, Epoch(HeadId(bytes(16)), 1), i, 3, LayerRange(bounds[i], bounds[i + 1]), 1, CONTEXT, 1, CONTEXT
        )
        for i in range(3)
    ]


def run_alone(folder: Path, name: Path, steps: list[np.ndarray], optimisations: str) -> dict[str, np.ndarray]:
    """Run an exported stage in a process that knows nothing of us."""
    np.savez(f"{name}.npz", step0=steps[0], step1=steps[1], prompt=PROMPT, top_k=TOP_K)
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", ALONE, str(name), optimisations]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(f"{name}.out.npz"))


def run_engine(engine, spec: StageSpec, steps: list[np.ndarray]) -> list[bytes]:
    answers = []
    for start, step in zip((0, PROMPT), steps, strict=True):
        row = Row(0, start, step.shape[1], (step.shape[1] - 1,), top_k=TOP_K)
        engine.input_buffer((row,))[:] = step.tobytes()
        answers.append(b"".join(engine.step((row,))))
    return answers


def values_of(answers: list[bytes], spec: StageSpec) -> dict[str, np.ndarray]:
    """The engine's answers under the names of an exported stage's outputs."""
    found = {}
    for step, (count, answer) in enumerate(zip((PROMPT, 1), answers, strict=True)):
        if not spec.is_last:
            found[f"{step}.hidden_out"] = np.frombuffer(answer, np.float32).reshape(1, count, spec.model.hidden)
            continue
        row = Row(0, 0, count, (count - 1,), top_k=TOP_K)
        candidates = split((row,), answer, spec.model.vocab)[0][0]
        found[f"{step}.top_ids"] = np.asarray(candidates.ids)[None]
        found[f"{step}.top_logits"] = np.asarray(candidates.logits)[None]
        found[f"{step}.lse"] = np.array([[candidates.lse]], np.float32)
    return found


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.mark.parametrize("kind", ["llama Q4_1", "gemma3 Q8_0", "llama int4"])
def test_exported_stages_alone_compute_what_the_engine_does(tmp_path, kind):
    family, form = kind.split()
    model = TinyModel(family=family, layers=3, context=64, type=form if form[0] == "Q" else "F16", head_dim=32)
    path = write_tiny_model(tmp_path / "tiny.gguf", model)
    path = path if form[0] == "Q" else write_checkpoint(path, tmp_path / "checkpoint")
    with open_model(path) as source:
        facts = facts_of(source, None if form[0] == "Q" else WeightForm(form))
        tokens = np.random.default_rng(0).integers(0, facts.vocab, (1, PROMPT + 1)).astype(np.int32)
        steps = [tokens[:, :PROMPT], tokens[:, PROMPT:]]
        for spec in specs(facts):
            folder = tmp_path / f"stage-{spec.index}"
            export_stage(spec, source, folder)
            same = load_engine(spec, source, options=EngineOptions(offsets=BlockOffsets.EXACT))
            fast = load_engine(spec, source)
            plain = run_alone(folder, tmp_path / f"plain-{spec.index}", steps, "plain")
            usual = run_alone(folder, tmp_path / f"usual-{spec.index}", steps, "all")
            wanted, near = (values_of(run_engine(engine, spec, steps), spec) for engine in (same, fast))
            same.close()
            fast.close()
            for name, value in wanted.items():
                np.testing.assert_array_equal(plain[name], value, err_msg=f"{folder.name} {name}")
                if not name.endswith("top_ids"):
                    assert distance(usual[name], value) < TOLERANCE
                    assert distance(plain[name], near[name]) < TOLERANCE
            steps = [plain.get(f"{step}.hidden_out") for step in range(2)]


def test_the_program_in_the_readme_runs(tmp_path):
    folder = tmp_path / "stage"
    config = ServeConfig(model=str(write_tiny_model(tmp_path / "tiny.gguf")), paths=Paths.under(tmp_path / "home"))
    assert export_model(config, output=folder) == folder
    assert {entry.name for entry in folder.iterdir()} == FILES
    program = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip(" []\n").split()) == 5
    assert "hyperlane" not in program


def test_the_manifest_says_which_layers_and_in_which_form(tmp_path):
    gguf = write_tiny_model(tmp_path / "tiny.gguf", type="F16", embedding_type="F16")
    config = ServeConfig(
        model=str(write_checkpoint(gguf, tmp_path / "tiny")), weights="int4", context=32, paths=Paths.under(tmp_path)
    )
    stage = json.loads((export_model(config, "1:3", tmp_path / "out") / "stage.json").read_text())
    assert (stage["first_layer"], stage["last_layer"], stage["layers_of_model"]) == (1, 3, 4)
    assert (stage["embeds"], stage["projects"], stage["weights"], stage["context"]) == (False, False, "int4", 32)
    inputs = {value["name"]: value for value in stage["inputs"]}
    assert inputs["hidden_in"]["shape"] == ["batch", "tokens", 64]
    assert inputs["past.2.key"]["shape"] == ["batch", 2, 33, 16]


def test_an_export_is_replaced_only_when_asked_and_nothing_else_ever(tmp_path):
    config = ServeConfig(model=str(write_tiny_model(tmp_path / "tiny.gguf")), paths=Paths.under(tmp_path / "home"))
    (tmp_path / "out").mkdir()
    folder = export_model(config, "0:1", tmp_path / "out")
    before = (folder / "stage.json").read_bytes()
    with pytest.raises(ConfigError, match="--force replaces it"):
        export_model(config, "0:2", folder)
    assert (folder / "stage.json").read_bytes() == before
    export_model(config, "0:2", folder, force=True)
    assert (folder / "stage.json").read_bytes() != before
    (folder / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"other things than an exported stage \('mine.txt'\)"):
        export_model(config, "0:1", folder, force=True)
    assert {entry.name for entry in tmp_path.iterdir()} - {"home"} == {"out", "tiny.gguf"}


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    path = write_tiny_model(tmp_path / "tiny.gguf")
    config = ServeConfig(model=str(path), paths=Paths.under(tmp_path / "home"))
    with pytest.raises(ConfigError, match="cannot be written"):
        export_model(config, output=path / "out")


def test_an_export_that_is_given_up_leaves_nothing(tmp_path):
    path = write_tiny_model(tmp_path / "tiny.gguf")

    def stop(_progress: object) -> None:
        raise KeyboardInterrupt

    with open_model(path) as source, pytest.raises(KeyboardInterrupt):
        export_stage(specs(facts_of(source))[0], source, tmp_path / "out", progress=stop)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize("layers", ["2:2", "3:1", "0:5", "1", "a:b", "-1:2", "0:99999999999"])
def test_layers_that_are_not_there_are_refused(tmp_path, layers):
    config = ServeConfig(model=str(write_tiny_model(tmp_path / "tiny.gguf")), paths=Paths.under(tmp_path / "home"))
    with pytest.raises(ConfigError, match="of 0:4"):
        export_model(config, layers, tmp_path / "out")


def test_a_graph_for_a_card_is_written_without_one(tmp_path):
    config = ServeConfig(
        model=str(write_tiny_model(tmp_path / "tiny.gguf")), device="cuda", paths=Paths.under(tmp_path / "home")
    )
    stage = json.loads((export_model(config, "0:2", tmp_path / "out") / "stage.json").read_text())
    assert stage["provider"] == "CUDAExecutionProvider"
    assert {value["dtype"] for value in stage["outputs"] if value["name"] == "hidden_out"} == {"float16"}
