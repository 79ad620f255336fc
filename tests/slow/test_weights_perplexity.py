"""What each form of `--weights` costs in quality: perplexity on 20,000 tokens beside a float32 reference.

The checkpoints are made of GGUF files, so int4 rounds weights a second time: an upper bound of what it loses.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperlane.core import WeightForm
from hyperlane.models.source import facts_of, open_model
from hyperlane.stage.loading import load_engine
from hyperlane.store.ready_store import ReadyStore
from hyperlane.testing.checkpoints import write_checkpoint
from hyperlane.testing.engines import InProcessPipeline
from hyperlane.testing.perplexity import perplexity, whole_model

DATA = Path(__file__).parents[1] / "data"
MOST = {WeightForm.FP16: 1.001, WeightForm.INT8: 1.01, WeightForm.INT4: 1.5}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("weights", WeightForm)
@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_each_form_of_weights_keeps_its_promise(
    model: str, weights: WeightForm, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    golden = DATA / f"golden_{model}.npz"
    folder = write_checkpoint(request.getfixturevalue(f"{model}_path"), tmp_path / "checkpoint")
    with open_model(folder) as checkpoint:
        facts = facts_of(checkpoint, weights)
        engine = load_engine(whole_model(facts, golden), checkpoint, ReadyStore(tmp_path / "ready"))
    pipeline = InProcessPipeline(facts, [engine])
    found, reference = perplexity(pipeline, golden)
    pipeline.close()
    print(f"{model}, weights in {weights}: perplexity {found:.4f}, {100 * (found / reference - 1):+.2f} %")
    assert found < MOST[weights] * reference
