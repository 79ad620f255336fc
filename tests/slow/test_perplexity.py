"""The fast path is as good as the file: perplexity on 20,000 tokens within 1 % of a float32 reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import EngineOptions, KvElement
from hyperlane.store.ready_store import ReadyStore
from hyperlane.testing.engines import InProcessPipeline
from hyperlane.testing.perplexity import perplexity, whole_model

DATA = Path(__file__).parents[1] / "data"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("kv", KvElement)
@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_perplexity_is_within_one_percent_of_the_reference(
    model: str, kv: KvElement, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    golden = DATA / f"golden_{model}.npz"
    with GgufFile(request.getfixturevalue(f"{model}_path")) as file:
        facts = read_facts(file)
        engine = load_engine(whole_model(facts, golden), file, ReadyStore(tmp_path), EngineOptions(kv=kv))
    pipeline = InProcessPipeline(facts, [engine])
    found, reference = perplexity(pipeline, golden)
    pipeline.close()
    print(f"{model}, KV in {kv}: perplexity {found:.4f}, {100 * (found / reference - 1):+.2f} % of the reference")
    assert found < 1.01 * reference
