"""The conformance suite on a CUDA device, and how far its answers are from the CPU's; skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hyperlane.core import Precision, Row, StageSpec
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.cuda import device_count
from hyperlane.stage.engine import Engine
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import REFERENCE, EngineOptions
from hyperlane.testing.engines import ENGINE_CHECKS, EngineHarness, some_tokens
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model

pytestmark = pytest.mark.skipif(device_count() == 0, reason="no CUDA device")

MODELS = {
    "llama": TinyModel(layers=3, type="Q4_0", hidden=256, heads=4, kv_heads=2, ffn=512),
    "llama untied, Q4_1": TinyModel(layers=3, type="Q4_1", hidden=256, ffn=512, tied=False, rope_factors=True),
    "llama wide vocabulary": TinyModel(layers=3, type="Q4_0", hidden=256, ffn=512, vocab=4096),
    "llama mixed": TinyModel(
        layers=3, hidden=256, ffn=512, type="Q4_K", types={"attn_v": "Q6_K", "ffn_down": "Q5_K"}, embedding_type="Q4_K"
    ),
    "llama offsets as columns": TinyModel(
        layers=3, hidden=2048, heads=16, kv_heads=4, ffn=2048, type="Q4_K", types={"ffn_down": "Q5_K"}
    ),
    "llama plain": TinyModel(layers=3, hidden=256, ffn=512, type="F16", embedding_type="F16"),
    "gemma3": TinyModel(family="gemma3", layers=3, hidden=256, ffn=512, type="Q5_0", types={"attn_v": "Q8_0"}),
    "gemma3 wide heads": TinyModel(
        family="gemma3", layers=3, hidden=256, ffn=512, type="Q4_1", heads=2, kv_heads=1, head_dim=256
    ),
}
PACKED = (Precision.INT8, Precision.INT4)
PACKED_TOLERANCE = {Precision.INT8: 0.2, Precision.INT4: 1.5}
"""Of a logit, of random models whose values are as likely large as small: what one step of one value makes of it."""

CUDA = EngineOptions(device="cuda")
UNCAPTURED = EngineOptions(device="cuda", capture=False)
APART = EngineOptions(device="cuda", fuse=False)
TOLERANCE = 0.1
"""Of a logit; these models' logits have a standard deviation of about 2.5. Float16 products summed in another order."""


def harness_of(path: Path, options: EngineOptions) -> EngineHarness:
    file = GgufFile(path)

    def engine(spec: StageSpec) -> Engine:
        return load_engine(spec, file, options=options)

    return EngineHarness(read_facts(file), engine, TOLERANCE)


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("model", MODELS)
def test_cuda_engine(check, model, tmp_path):
    check(harness_of(write_tiny_model(tmp_path / "tiny.gguf", MODELS[model]), CUDA))


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("precision", PACKED)
def test_cuda_engine_with_packed_links(check, precision, tmp_path):
    """What is packed is a float16 sum, whose last bit moves a packed value by a step: see `PACKED_TOLERANCE`."""
    harness = harness_of(write_tiny_model(tmp_path / "tiny.gguf", MODELS["llama"]), CUDA)
    check(replace(harness, precision=precision, least_stages=3, tolerance=PACKED_TOLERANCE[precision]))


@pytest.mark.parametrize("precision", PACKED)
def test_packed_links_between_cuda_stages_answer_as_those_between_the_cpus(precision, tmp_path):
    path = write_tiny_model(tmp_path / "tiny.gguf", MODELS["llama"])
    found = []
    for options in (REFERENCE, CUDA):
        harness = replace(harness_of(path, options), precision=precision)
        with harness.pipeline(3) as pipeline:
            prompt = some_tokens(harness.facts, 24)
            logits = [pipeline.logits(0, prompt)]
            logits += [pipeline.logits(0, [token], 24 + token) for token in range(8)]
            found.append(np.stack(logits))
    print(
        precision, "largest difference", np.abs(found[0] - found[1]).max(), "mean", np.abs(found[0] - found[1]).mean()
    )
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=2 * PACKED_TOLERANCE[precision])


@pytest.mark.parametrize("model", MODELS)
def test_cuda_answers_as_float32_on_the_cpu_does(model, tmp_path):
    path = write_tiny_model(tmp_path / "tiny.gguf", MODELS[model])
    found = []
    for options in (REFERENCE, CUDA):
        harness = harness_of(path, options)
        with harness.pipeline() as pipeline:
            prompt = some_tokens(harness.facts, 24)
            logits = [pipeline.logits(0, prompt)]
            logits += [pipeline.logits(0, [token], 24 + token) for token in range(8)]
            found.append(np.stack(logits))
    print(model, "std", found[0].std(), "largest difference", np.abs(found[0] - found[1]).max())
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=2 * TOLERANCE * max(1.0, found[0].std()))


def test_what_goes_in_with_the_hidden_states_gives_what_it_gives_in_a_copy_of_its_own(tmp_path):
    path = write_tiny_model(tmp_path / "tiny.gguf", MODELS["llama"])
    found = []
    for options in (APART, CUDA):
        harness = harness_of(path, options)
        with harness.pipeline(3) as pipeline:
            steps = []
            for position, token in enumerate(some_tokens(harness.facts, 48)):
                slots = range(1 + position % 4)
                rows = [Row(slot, position // 4, 1, (0,), top_k=8) for slot in slots]
                steps += [np.array(answer[0].logits) for answer in pipeline.step(rows, [token] * len(rows))]
            found.append(np.stack(steps))
    np.testing.assert_array_equal(found[0], found[1])


def test_a_replayed_step_equals_one_that_was_not_captured_at_every_length(tmp_path):
    path = write_tiny_model(tmp_path / "tiny.gguf", MODELS["llama"])
    found = []
    for options in (UNCAPTURED, CUDA):
        harness = harness_of(path, options)
        tokens = some_tokens(harness.facts, 96)
        with harness.pipeline(2) as pipeline:
            steps = []
            for position, token in enumerate(tokens):
                (answer,) = pipeline.step([Row(2, position, 1, (0,), top_k=8)], [token])
                steps.append(np.sort(np.array(answer[0].logits)))
            found.append(np.stack(steps))
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=TOLERANCE)
