"""Every engine runs one conformance suite: the real one with tiny models of both families, and the fake one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hyperlane.core import Precision, StageSpec
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.engine import Engine
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import REFERENCE, Arithmetic, BlockOffsets, EngineOptions, KvElement
from hyperlane.store.ready_store import ReadyStore
from hyperlane.testing.engines import ENGINE_CHECKS, EngineHarness
from hyperlane.testing.fake_engine import FakeEngine
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model
from hyperlane.testing.toy import toy_facts

LLAMA = TinyModel(layers=3, type="Q4_1")
MODELS = {
    "llama": LLAMA,
    "llama untied, Q4_0": TinyModel(layers=3, type="Q4_0", tied=False, rope_factors=True),
    "llama mixed": TinyModel(
        layers=3, hidden=256, ffn=256, type="Q4_K", types={"attn_v": "Q6_K", "ffn_down": "Q5_K"}, embedding_type="Q4_K"
    ),
    "llama plain": TinyModel(layers=3, type="F16", embedding_type="F16"),
    "gemma3": TinyModel(family="gemma3", layers=3, type="Q5_0", types={"attn_v": "Q8_0"}),
    "gemma3 wide heads": TinyModel(family="gemma3", layers=3, type="Q4_1", heads=2, kv_heads=1, head_dim=256),
}
OPTIONS = {
    "reference": REFERENCE,
    "half": EngineOptions(kv=KvElement.F16),
    "single": EngineOptions(kv=KvElement.F32),
    "columns": EngineOptions(offsets=BlockOffsets.COLUMNS),
    "wide": EngineOptions(offsets=BlockOffsets.WIDE),
}

PACKED = (Precision.INT8, Precision.INT4)
PLAIN = {"F32", "F16", "BF16"}
FLOAT_TOLERANCE = 1e-4
"""Float32 matmuls sum one row otherwise than many; integer ones do not."""

MakeHarness = Callable[[TinyModel, EngineOptions], EngineHarness]


@pytest.fixture
def onnx_harness(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> MakeHarness:
    store = ReadyStore(tmp_path_factory.getbasetemp() / "ready")

    def make(model: TinyModel, options: EngineOptions) -> EngineHarness:
        path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", model)
        file = GgufFile(path)
        request.addfinalizer(file.close)

        def engine(spec: StageSpec) -> Engine:
            return load_engine(spec, file, store, options)

        tolerance = FLOAT_TOLERANCE if Arithmetic.F32 is options.arithmetic or model.type in PLAIN else 0.0
        return EngineHarness(read_facts(file), engine, tolerance)

    return make


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("model", MODELS)
def test_onnx_engine(check, model, onnx_harness):
    check(onnx_harness(MODELS[model], EngineOptions()))


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("options", OPTIONS)
def test_onnx_engine_in_other_arithmetic(check, options, onnx_harness):
    check(onnx_harness(LLAMA, OPTIONS[options]))


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("precision", PACKED)
@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_onnx_engines_with_packed_links(check, model, precision, onnx_harness):
    """Packing loses something, but the same whatever is computed beside it and however a prompt is cut."""
    check(replace(onnx_harness(MODELS[model], EngineOptions()), precision=precision, least_stages=3))


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
def test_fake_engine(check):
    check(EngineHarness(toy_facts(layers=4, vocab=300), FakeEngine))


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("precision", PACKED)
def test_fake_engines_with_packed_links(check, precision):
    check(EngineHarness(toy_facts(layers=4, hidden=64, vocab=300), FakeEngine, precision=precision))
