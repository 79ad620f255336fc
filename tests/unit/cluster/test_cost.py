"""What a plan counts for weights: a file's own bytes where they stay quantised, what they become where they are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperlane.cluster.cost import READY_FORM, stage_cost
from hyperlane.core import WeightForm
from hyperlane.models.source import facts_of, open_model
from hyperlane.testing.checkpoints import write_checkpoint
from hyperlane.testing.tiny_models import write_tiny_model

LAYER_WEIGHTS = 3 * 128 * 64 + 64 * (64 + 64 + 2 * 32)
VECTORS = 2 * 64 * 4
BYTES = {WeightForm.FP16: 4.0, WeightForm.INT8: 1.0 + 4 / 32, WeightForm.INT4: 0.5 + 4 / 32 + 0.5 / 32}


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(
        write_tiny_model(tmp_path / "tiny.gguf", type="F16", embedding_type="F16", vocab=512), tmp_path / "checkpoint"
    )


@pytest.mark.parametrize("weights", WeightForm)
def test_layers_of_a_checkpoint_count_as_what_they_become(folder, weights):
    with open_model(folder) as model:
        cost = stage_cost(facts_of(model, weights), model, 4, 64, 64)
    assert cost.layer_weights == (int(READY_FORM * (LAYER_WEIGHTS * BYTES[weights] + VECTORS)),) * 4


def test_the_vocabulary_is_not_rounded_to_four_bits(folder):
    with open_model(folder) as model:
        facts = facts_of(model, WeightForm.INT8)
        eight = stage_cost(facts, model, 4, 64, 64)
        four = stage_cost(replace(facts, weights=WeightForm.INT4), model, 4, 64, 64)
    assert (four.embedding, four.output) == (eight.embedding, eight.output)
    assert four.embedding == int(READY_FORM * 512 * 64 * BYTES[WeightForm.INT8])


def test_what_is_quantised_already_counts_as_it_is_stored(tmp_path):
    with open_model(write_tiny_model(tmp_path / "tiny.gguf", type="Q4_0")) as model:
        cost = stage_cost(facts_of(model), model, 4, 64, 64)
    assert cost.layer_weights[0] == int(READY_FORM * (LAYER_WEIGHTS // 32 * 18 + VECTORS))
