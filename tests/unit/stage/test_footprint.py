"""What a stage takes of a card beside weights and entries."""

from __future__ import annotations

from hyperlane.core import ModelFacts, RopeFacts
from hyperlane.stage.footprint import Asked, Footprint, workspace

FACTS = ModelFacts(
    name="m", family="llama", fingerprint="", layers=4, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=128, vocab=300,
    context=128, rms_eps=1e-5, rope=RopeFacts(1e4, 16), tied_output=True,
)  # fmt: skip
MODEL = Footprint(runtime=1 << 20, few_rows=5 << 20)


def of(slots: int, model: Footprint = MODEL) -> int:
    return workspace(model, FACTS, Asked(slots, 128, 64, 64), (), half=True)


def test_a_stage_of_one_slot_has_no_kernels_for_a_few_rows():
    plain = Footprint(runtime=1 << 20)
    assert of(1) == of(1, plain)
    assert of(2) == of(2, plain) + MODEL.few_rows
