"""The real engine is measured: types and families as models have them, with made-up weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperlane.cluster.machine import taken_memory
from hyperlane.cluster.profile import device
from hyperlane.cluster.profile.device import Bench, measure_device
from hyperlane.cluster.profile.shape import ProfileShape
from hyperlane.core import ModelFacts, RopeFacts, WeightForm
from hyperlane.models import inventory
from hyperlane.stage.loading import load_engine

LLAMA = ModelFacts(
    name="shape",
    family="llama",
    fingerprint="0" * 64,
    layers=8,
    hidden=256,
    heads=4,
    kv_heads=2,
    head_dim=64,
    ffn=512,
    vocab=1024,
    context=512,
    rms_eps=1e-5,
    rope=RopeFacts(10_000.0, 64),
    tied_output=False,
)
GEMMA = replace(
    LLAMA,
    family="gemma3",
    tied_output=True,
    window=64,
    global_every=3,
    rope_local=RopeFacts(1e4, 64),
    attention_scale=0.125,
    embedding_scale=16.0,
)


def types_of(facts: ModelFacts, kind: str, down: str) -> tuple[str, ...]:
    names = inventory.layer_tensors(facts, 0)
    return tuple("F32" if "norm" in name else down if "down" in name else kind for name in names)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(device, "SWEEP_BYTES", 1 << 20)


@pytest.mark.parametrize(
    ("facts", "kind", "down", "embedding"),
    [
        (LLAMA, "Q4_K", "Q6_K", "Q4_K"),
        (LLAMA, "Q4_1", "Q4_1", "Q8_0"),
        (LLAMA, "F16", "BF16", "F16"),
        (LLAMA, "IQ4_XS", "IQ3_S", "Q6_K"),
        (GEMMA, "Q4_0", "Q5_0", "Q8_0"),
        (replace(LLAMA, weights=WeightForm.INT4), "BF16", "BF16", "BF16"),
    ],
    ids=["Q4_K_M", "Q4_1", "F16", "IQ", "gemma3", "checkpoint"],
)
def test_every_part_of_a_model_is_measured(facts, kind, down, embedding):
    mixed = (types_of(facts, kind, down), types_of(facts, kind, kind), types_of(facts, kind, down))
    shape = ProfileShape(facts, mixed, embedding, "Q6_K", (1, 2), (2, 16), kv_entries=64, prompt_entries=0)
    built = []

    def build(spec, source):
        built.append(spec)
        return load_engine(spec, source)

    profile = measure_device(shape, Bench(build, 1, taken_memory, 1 << 30), lambda _told: None)
    curves = (profile.layer_decode, profile.layer_prefill, profile.embed, profile.project)
    assert [tuple(size for size, _ in curve.points) for curve in curves] == [(1, 2), (2, 16), (1, 16), (1, 2)]
    assert max(seconds for curve in curves for _, seconds in curve.points) > 0
    assert profile.process_bytes > 1 << 20
    assert {(len(spec.layers), spec.is_first, spec.is_last) for spec in built} == {
        (1, False, False),
        (3, False, False),
        (1, True, False),
        (1, False, True),
    }
