"""A checkpoint's folder over real worker processes, from the Python API."""

from __future__ import annotations

from hyperlane import AutoDistributedModel
from hyperlane.testing.checkpoints import write_checkpoint
from hyperlane.testing.tiny_models import write_tiny_model


def test_a_folder_is_served_over_two_workers_in_the_form_that_was_asked_for(tmp_path):
    gguf = write_tiny_model(tmp_path / "tiny.gguf", type="F16", embedding_type="F16")
    folder = write_checkpoint(gguf, tmp_path / "my-checkpoint", shards=2)
    with AutoDistributedModel.from_pretrained(str(folder), local_workers=2, threads=1, weights="int4") as model:
        assert model.plan.model.name == "my-checkpoint"
        assert [str(stage.layers) for stage in model.plan.stages] == ["0-1", "2-3"]
        answer = model.chat([{"role": "user", "content": "the ring"}], temperature=0.0, max_tokens=5)
        assert answer.usage.completion_tokens == 5
        assert model.generate("the ring", temperature=0.0, max_tokens=5) == model.generate(
            "the ring", temperature=0.0, max_tokens=5
        )
