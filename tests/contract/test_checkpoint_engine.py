"""A checkpoint computes what the file does that it was made of: other names, another order of rows, the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyperlane.core import WeightForm
from hyperlane.models.source import facts_of, open_model
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import REFERENCE
from hyperlane.store.ready_store import ReadyStore
from hyperlane.testing.checkpoints import write_checkpoint
from hyperlane.testing.engines import EngineHarness, InProcessPipeline, some_tokens
from hyperlane.testing.tiny_models import write_tiny_model


def reference_of(path: Path, weights: WeightForm | None) -> InProcessPipeline:
    with open_model(path) as model:
        facts = facts_of(model, weights)
        (spec,) = EngineHarness(facts, load_engine).specs()
        return InProcessPipeline(facts, [load_engine(spec, model, options=REFERENCE)])


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(("family", "form"), [("llama", "Q4_1"), ("gemma3", "Q8_0")])
def test_weights_in_full_give_the_logits_of_the_file(tmp_path, family, form, shards):
    gguf = write_tiny_model(tmp_path / "tiny.gguf", family=family, type=form, layers=3, head_dim=32)
    folder = write_checkpoint(gguf, tmp_path / "checkpoint", dtype="F32", shards=shards)
    logits = []
    for path, weights in ((gguf, None), (folder, WeightForm.FP16)):
        pipeline = reference_of(path, weights)
        logits.append(pipeline.logits(1, some_tokens(pipeline.facts, 30)))
        pipeline.close()
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("weights", WeightForm)
def test_each_form_has_ready_weights_of_its_own(tmp_path, weights):
    gguf = write_tiny_model(tmp_path / "tiny.gguf", type="F16", embedding_type="F16", layers=3)
    folder, store = write_checkpoint(gguf, tmp_path / "checkpoint"), ReadyStore(tmp_path / "ready")
    logits = {}
    for form in (WeightForm.INT8, weights, weights):
        with open_model(folder) as model:
            facts = facts_of(model, form)
            (spec,) = EngineHarness(facts, load_engine).specs()
            pipeline = InProcessPipeline(facts, [load_engine(spec, model, store)])
        now = pipeline.logits(0, some_tokens(facts, 20))
        np.testing.assert_array_equal(now, logits.setdefault(form, now))
        pipeline.close()
    for form, other in logits.items():
        assert form is WeightForm.INT8 or not np.array_equal(other, logits[WeightForm.INT8])
