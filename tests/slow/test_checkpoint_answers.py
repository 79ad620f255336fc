"""A real checkpoint whose weights stay in full answers as the file does that it was made of, in float32 arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyperlane.core import WeightForm
from hyperlane.models.source import facts_of, open_model, tokenizer_of
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import REFERENCE, EngineOptions
from hyperlane.testing.checkpoints import write_checkpoint
from hyperlane.testing.engines import EngineHarness, InProcessPipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOLERANCE = 0.05
"""Of a logit (they reach 20): weights rounded to float16 once more, and KV entries in float16."""

PROMPT = "The three largest rivers of Europe are"
ANSWER = 20


def pipeline_of(path: Path, options: EngineOptions, weights: WeightForm | None = None) -> InProcessPipeline:
    with open_model(path) as model:
        facts = facts_of(model, weights)
        (spec,) = EngineHarness(facts, load_engine).specs()
        return InProcessPipeline(facts, [load_engine(spec, model, options=options)])


def greedy(pipeline: InProcessPipeline, prompt: list[int]) -> tuple[list[int], np.ndarray]:
    """An answer, and the logits before each of its tokens."""
    logits = [pipeline.logits(0, prompt)]
    for step in range(ANSWER - 1):
        logits.append(pipeline.logits(0, [int(logits[-1].argmax())], len(prompt) + step))
    return [int(one.argmax()) for one in logits], np.stack(logits)


def test_a_real_checkpoint_answers_as_the_file_does(smollm2_path, tmp_path):
    folder = write_checkpoint(smollm2_path, tmp_path / "checkpoint")
    with open_model(folder) as model:
        prompt = tokenizer_of(model).encode(PROMPT)
    found = []
    for path, options, weights in (
        (smollm2_path, REFERENCE, None),
        (folder, EngineOptions(), WeightForm.FP16),
    ):
        pipeline = pipeline_of(path, options, weights)
        found.append(greedy(pipeline, prompt))
        pipeline.close()
    assert found[1][0] == found[0][0]
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=0, atol=TOLERANCE)
