"""The engine's log-probabilities against a PyTorch forward pass on the same weights (`scripts/make_golden.py`)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hyperlane.core import Epoch, HeadId, LayerRange, Row, StageSpec
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import REFERENCE
from hyperlane.testing.engines import InProcessPipeline

DATA = Path(__file__).parents[1] / "data"
FRAME = 64
TOLERANCE = 2e-3


def log_probabilities(path: Path, tokens: np.ndarray, stages: int) -> np.ndarray:
    """Of every token after every position but the last, float64 [tokens - 1, vocab]."""
    with GgufFile(path) as file:
        facts = read_facts(file)
        bounds = [facts.layers * index // stages for index in range(stages + 1)]
        ranges = [LayerRange(*pair) for pair in pairwise(bounds)]
        epoch = Epoch(HeadId(bytes(16)), 1)
        specs = [
            StageSpec(facts, epoch, index, stages, layers, 1, len(tokens), 2, FRAME)
            for index, layers in enumerate(ranges)
        ]
        pipeline = InProcessPipeline(facts, [load_engine(spec, file, options=REFERENCE) for spec in specs])
    found = []
    for start in range(0, len(tokens), FRAME):
        part = tokens[start : start + FRAME]
        row = Row(0, start, len(part), tuple(range(len(part))), whole_logits=True)
        logits = np.stack(pipeline.step((row,), part)[0])
        top = logits.max(axis=-1, keepdims=True)
        found.append(logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True, dtype=np.float64)))
    pipeline.close()
    return np.concatenate(found)[:-1]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("model", "stages"),
    [("smollm2", 1), ("smollm2", 3), ("gemma3", 1), pytest.param("gemma3", 3, marks=pytest.mark.slow)],
)
def test_log_probabilities_equal_the_reference(model: str, stages: int, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(f"{model}_path")
    golden = np.load(DATA / f"golden_{model}.npz")
    tokens = golden["tokens"]
    found = log_probabilities(path, tokens, stages)
    next_tokens = found[np.arange(len(tokens) - 1), tokens[1:]]
    np.testing.assert_allclose(next_tokens, golden["logprobs"], rtol=0, atol=TOLERANCE)
    top = np.take_along_axis(found, golden["top_ids"].astype(np.int64), axis=1)
    np.testing.assert_allclose(top, golden["top_logprobs"], rtol=0, atol=TOLERANCE)
