"""How well a pipeline predicts a golden file's text. Knows the file's layout, not how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hyperlane.core import Epoch, HeadId, LayerRange, ModelFacts, Row, StageSpec
from hyperlane.testing.engines import InProcessPipeline
from hyperlane.wire.candidates import Candidates

THREADS = 2


def whole_model(facts: ModelFacts, golden: Path) -> StageSpec:
    """A stage of all layers that can take a golden file's windows."""
    size = int(np.load(golden)["window"])
    return StageSpec(
        model=facts,
        epoch=Epoch(HeadId(bytes(16)), 1),
        index=0,
        stages=1,
        layers=LayerRange(0, facts.layers),
        slots=1,
        context=size,
        threads=THREADS,
        max_step_tokens=size,
    )


def perplexity(pipeline: InProcessPipeline, golden: Path) -> tuple[float, float]:
    """Perplexity on the file's windows, and that of its reference."""
    return float(np.exp(losses(pipeline, golden).mean())), float(np.exp(np.load(golden)["nll"]))


def losses(pipeline: InProcessPipeline, golden: Path) -> npt.NDArray[np.float64]:
    """Of each predicted token of the file's windows."""
    file = np.load(golden)
    size = int(file["window"])
    return np.concatenate([window_losses(pipeline, golden, at * size) for at in range(int(file["windows"]))])


def window_losses(pipeline: InProcessPipeline, golden: Path, start: int) -> npt.NDArray[np.float64]:
    """Of each predicted token of a window that begins at the file's token `start`."""
    file = np.load(golden)
    size, bos = int(file["window"]), int(file["bos"])
    window = file["text"][start : start + size].tolist()
    window[0] = window[0] if bos < 0 else bos
    return np.array(_losses(pipeline, window))


def _losses(pipeline: InProcessPipeline, window: Sequence[int]) -> list[float]:
    """Of the tokens in the second half of a window but its first, as the golden file counts them."""
    wanted = tuple(range(len(window) // 2, len(window) - 1))
    extra = tuple(sorted({window[offset + 1] for offset in wanted}))
    row = Row(0, 0, len(window), wanted, top_k=1, extra_ids=extra)
    found = []
    for offset, answer in zip(wanted, pipeline.step((row,), window)[0], strict=True):
        assert isinstance(answer, Candidates)
        found.append(answer.lse - float(answer.extra[extra.index(window[offset + 1])]))
    return found
