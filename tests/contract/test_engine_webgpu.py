"""The conformance suite on WebGPU, in float16 where the driver has it; and stages on WebGPU and CPU in one pipeline.

Runs on a card, or with a Vulkan driver in software (`ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1`); skipped without either,
unless `HYPERLANE_TEST_NEEDS` says webgpu: then it fails.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hyperlane.core import Precision, StageSpec
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage import onnx_webgpu
from hyperlane.stage.engine import Engine
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import REFERENCE, EngineOptions
from hyperlane.testing.engines import ENGINE_CHECKS, EngineHarness, some_tokens
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model

os.environ.setdefault(onnx_webgpu.SOFTWARE, "1")
NEEDED = "webgpu" in os.environ.get("HYPERLANE_TEST_NEEDS", "")
pytestmark = pytest.mark.skipif(
    onnx_webgpu.count() == 0 and not NEEDED,
    reason="no WebGPU: onnxruntime-ep-webgpu, libvulkan1 and a Vulkan driver are needed",
)

MODELS = {
    "llama": TinyModel(layers=3, type="Q4_0", hidden=64),
    "gemma3": TinyModel(family="gemma3", layers=3, type="Q4_1", hidden=64, ffn=128, types={"attn_v": "Q8_0"}),
}
WEBGPU = EngineOptions(device="webgpu", single=not onnx_webgpu.has_half())
TOLERANCE = 2e-4 if WEBGPU.single else 0.1
"""Of a logit; these models' logits have a standard deviation of about 3."""


def harness_of(path: Path, *options: EngineOptions) -> EngineHarness:
    """Stages take the options in turns."""
    file = GgufFile(path)

    def engine(spec: StageSpec) -> Engine:
        return load_engine(spec, file, options=options[spec.index % len(options)])

    return EngineHarness(read_facts(file), engine, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("model", MODELS)
def test_webgpu_engine(check, model, tmp_path):
    check(harness_of(write_tiny_model(tmp_path / "tiny.gguf", MODELS[model]), WEBGPU))


@pytest.mark.parametrize("model", MODELS)
def test_a_pipeline_of_webgpu_and_cpu_answers_as_float32_on_the_cpu_does(model, tmp_path):
    path = write_tiny_model(tmp_path / "tiny.gguf", MODELS[model])
    found = []
    for options in ((REFERENCE,), (WEBGPU, REFERENCE), (REFERENCE, WEBGPU)):
        harness = replace(harness_of(path, *options), precision=Precision.F32)
        with harness.pipeline(3) as pipeline:
            prompt = some_tokens(harness.facts, 24)
            logits = [pipeline.logits(0, prompt)]
            logits += [pipeline.logits(0, [token], 24 + token) for token in range(4)]
            found.append(np.stack(logits))
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=0, atol=2 * TOLERANCE)
        np.testing.assert_array_equal(found[0].argmax(axis=-1), other.argmax(axis=-1))
