"""The fast path is as good as the file: perplexity on 20,000 tokens within 1 % of a float32 reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyperlane.core import Epoch, HeadId, LayerRange, Row, StageSpec
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import EngineOptions, KvElement
from hyperlane.store.ready_store import ReadyStore
from hyperlane.testing.engines import InProcessPipeline
from hyperlane.wire.candidates import Candidates

DATA = Path(__file__).parents[1] / "data"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def losses(pipeline: InProcessPipeline, window: list[int]) -> list[float]:
    """Of the tokens in the second half of a window but its first, as the golden file counts them."""
    wanted = tuple(range(len(window) // 2, len(window) - 1))
    extra = tuple(sorted({window[offset + 1] for offset in wanted}))
    row = Row(0, 0, len(window), wanted, top_k=1, extra_ids=extra)
    found = []
    for offset, answer in zip(wanted, pipeline.step((row,), window)[0], strict=True):
        assert isinstance(answer, Candidates)
        found.append(answer.lse - float(answer.extra[extra.index(window[offset + 1])]))
    return found


@pytest.mark.parametrize("kv", KvElement)
@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_perplexity_is_within_one_percent_of_the_reference(
    model: str, kv: KvElement, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    golden = np.load(DATA / f"golden_{model}.npz")
    windows, size, bos = int(golden["windows"]), int(golden["window"]), int(golden["bos"])
    with GgufFile(request.getfixturevalue(f"{model}_path")) as file:
        facts = read_facts(file)
        layers = LayerRange(0, facts.layers)
        spec = StageSpec(facts, Epoch(HeadId(bytes(16)), 1), 0, 1, layers, 1, size, 2, size)
        engine = load_engine(spec, file, ReadyStore(tmp_path), EngineOptions(kv=kv))
    pipeline = InProcessPipeline(facts, [engine])
    found: list[float] = []
    for index in range(windows):
        window = golden["text"][index * size : (index + 1) * size].tolist()
        window[0] = window[0] if bos < 0 else bos
        found += losses(pipeline, window)
    pipeline.close()
    ratio = float(np.exp(np.mean(found) - golden["nll"]))
    print(f"{model}, KV in {kv}: perplexity {np.exp(np.mean(found)):.4f}, {100 * (ratio - 1):+.2f} % of the reference")
    assert ratio < 1.01
