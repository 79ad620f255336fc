"""What is asked of a device for a model and a workload."""

from __future__ import annotations

import dataclasses

from hyperlane.cluster.planner.facts import WireBytes, Workload
from hyperlane.cluster.profile.shape import SAMPLE_BYTES, profile_shape
from hyperlane.core import ModelFacts, RopeFacts, StageCost
from hyperlane.models import inventory
from hyperlane.models.weights import TensorInfo

FACTS = ModelFacts(
    name="m",
    family="llama",
    fingerprint="f",
    layers=32,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=128,
    vocab=256,
    context=4096,
    rms_eps=1e-5,
    rope=RopeFacts(1e4, 16),
    tied_output=False,
)


class Types:
    """A `TensorSource` that knows types alone: `wide` layers have another one in `ffn_down`."""

    def __init__(self, wide: range = range(0)) -> None:
        self._wide = {f"blk.{i}.ffn_down.weight" for i in wide}

    def info(self, name: str) -> TensorInfo | None:
        kind = {inventory.EMBEDDING: "Q4_K", inventory.OUTPUT: "Q6_K"}.get(name, "Q4_K")
        return TensorInfo(name, (1, 1), "Q6_K" if name in self._wide else kind, 1)


def workload(layer_bytes: int = 1 << 20, **changes: int) -> Workload:
    cost = StageCost((layer_bytes,) * FACTS.layers, 1, 1, 1, 1)
    defaults = {"context": 4096, "slots": 4, "prompt_tokens": 500, "answer_tokens": 100, "chunk_tokens": 64}
    return Workload(FACTS, cost, WireBytes(64, 32), **(defaults | changes))


def test_samples_have_each_kind_of_layer_in_its_share_and_well_mixed():
    shape = profile_shape(FACTS, Types(wide=range(8)), workload(layer_bytes=SAMPLE_BYTES // 8))
    wide = ["Q6_K" in kinds for kinds in shape.layers]
    assert (len(wide), sum(wide)) == (8, 2)
    assert sum(wide[:4]) == 1


def test_samples_are_more_than_a_cache_holds_but_no_more_than_the_model_has():
    sizes = {SAMPLE_BYTES: 3, SAMPLE_BYTES // 16: 16, 1 << 10: FACTS.layers}
    for layer_bytes, count in sizes.items():
        assert len(profile_shape(FACTS, Types(), workload(layer_bytes=layer_bytes)).layers) == count


def test_a_model_of_few_layers_is_measured_with_its_own():
    small = dataclasses.replace(FACTS, layers=3)
    shape = profile_shape(small, Types(wide=range(2)), workload())
    assert sorted("Q6_K" in kinds for kinds in shape.layers) == [False, True, True]


def test_embedding_and_output_have_their_own_types():
    shape = profile_shape(FACTS, Types(), workload())
    assert (shape.embedding, shape.output) == ("Q4_K", "Q6_K")
    tied = profile_shape(dataclasses.replace(FACTS, tied_output=True), Types(), workload())
    assert tied.output == "Q4_K"


def test_batches_double_up_to_the_slots():
    assert profile_shape(FACTS, Types(), workload(slots=1)).rows == (1,)
    assert profile_shape(FACTS, Types(), workload(slots=6)).rows == (1, 2, 4, 6)
    assert profile_shape(FACTS, Types(), workload(slots=100)).rows == (1, 2, 4, 8, 16, 32)


def test_chunks_grow_up_to_the_schedulers():
    assert profile_shape(FACTS, Types(), workload(chunk_tokens=100)).chunks == (2, 8, 32, 100)


def test_the_largest_chunk_that_a_plan_may_choose_is_asked_for_too():
    assert profile_shape(FACTS, Types(), workload(chunk_choices=(16, 64, 256))).chunks == (2, 8, 32, 64, 256)


def test_the_entries_are_those_of_the_middle_and_fit_the_context():
    shape = profile_shape(FACTS, Types(), workload())
    assert (shape.kv_entries, shape.prompt_entries) == (576, 256)
    short = profile_shape(FACTS, Types(), workload(context=128))
    assert short.kv_entries == 127


def test_a_small_change_of_the_workload_asks_for_the_same():
    assert profile_shape(FACTS, Types(), workload()) == profile_shape(FACTS, Types(), workload(prompt_tokens=502))
