"""What packed links cost: perplexity on 20,000 tokens against raw links, over two boundaries of both real models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hyperlane.core import LayerRange, Precision
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.loading import load_engine
from hyperlane.store.ready_store import ReadyStore
from hyperlane.testing.engines import InProcessPipeline
from hyperlane.testing.perplexity import losses, whole_model

DATA = Path(__file__).parents[1] / "data"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

WITHIN = {
    "smollm2": {Precision.INT8: 1.004, Precision.INT4: 1.012},
    "gemma3": {Precision.INT8: 1.004, Precision.INT4: 1.012},
}
"""Of the perplexity of raw links."""


@pytest.mark.parametrize("model", WITHIN)
def test_packed_links_keep_the_perplexity(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    golden, store = DATA / f"golden_{model}.npz", ReadyStore(tmp_path)
    with GgufFile(request.getfixturevalue(f"{model}_path")) as file:
        whole = whole_model(read_facts(file), golden)
        layers = whole.model.layers

        def mean_loss(precision: Precision) -> float:
            links = (Precision.RAW, precision, precision, Precision.RAW)
            specs = [
                replace(
                    whole,
                    index=index,
                    stages=3,
                    layers=LayerRange(layers * index // 3, layers * (index + 1) // 3),
                    precision_in=links[index],
                    precision_out=links[index + 1],
                )
                for index in range(3)
            ]
            pipeline = InProcessPipeline(whole.model, [load_engine(spec, file, store) for spec in specs])
            found = float(losses(pipeline, golden).mean())
            pipeline.close()
            return found

        raw = mean_loss(Precision.RAW)
        for precision, most in WITHIN[model].items():
            ratio = float(np.exp(mean_loss(precision) - raw))
            print(f"{model}, {precision}: {100 * (ratio - 1):+.2f} % of perplexity over two boundaries")
            assert ratio < most
