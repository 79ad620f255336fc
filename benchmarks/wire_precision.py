"""What packed links cost in perplexity, with the operators that links really use.

    python benchmarks/wire_precision.py MODEL [--cuts 15] [--cuts 10 20] [--precisions int8 int4] [--windows 40]
        [--keep FOLDER] [--seconds 150]

MODEL: smollm2 or gemma3, whose text is in tests/data. Each `--cuts` names the layers before which the model is cut, so
two numbers are 2 boundaries and 3 stages. Raw links lose nothing and are measured once. 40 windows of 512 tokens are
the whole text of 20,000 tokens (the last one begins at token 19,488); 255 tokens of each are predicted. `±`: standard
error of the difference, token by token.

With `--keep` what was measured lies in a folder, and a run goes on where the one before stopped: after `--seconds`, if
that is given. The table has what is complete.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hyperlane.bench.machine import describe_machine
from hyperlane.config import Paths, load
from hyperlane.core import ElementType, Epoch, HeadId, LayerRange, ModelFacts, Precision, StageSpec
from hyperlane.models.download import pull
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import EngineOptions
from hyperlane.store.ready_store import ReadyStore
from hyperlane.testing.engines import InProcessPipeline
from hyperlane.testing.perplexity import window_losses
from hyperlane.wire.packing import token_bytes

MODELS = {"smollm2": "smollm2-135m", "gemma3": "gemma3-270m"}
DATA = Path(__file__).parents[1] / "tests" / "data"

Losses = npt.NDArray[np.float64]


def stages_of(facts: ModelFacts, cuts: Sequence[int], precision: Precision, size: int, threads: int) -> list[StageSpec]:
    """The model cut before these layers, its inner links of one precision."""
    bounds, raw = [0, *cuts, facts.layers], Precision.RAW
    last, epoch = len(cuts), Epoch(HeadId(bytes(16)), 1)
    return [
        StageSpec(
            model=facts,
            epoch=epoch,
            index=index,
            stages=last + 1,
            layers=LayerRange(bounds[index], bounds[index + 1]),
            slots=1,
            context=size,
            threads=threads,
            max_step_tokens=size,
            precision_in=precision if index else raw,
            precision_out=precision if index < last else raw,
        )
        for index in range(last + 1)
    ]


class Bench:
    """One model and its text."""

    def __init__(self, name: str, windows: int, threads: int, folder: Path, seconds: float) -> None:
        """`folder` keeps the model's layers in the engine's form, and what was measured."""
        self._file = GgufFile(pull(MODELS[name], load(Paths).models))
        self.facts = read_facts(self._file)
        self._golden = DATA / f"golden_{name}.npz"
        found = np.load(self._golden)
        self._tokens, self.size = len(found["text"]), int(found["window"])
        self.windows = min(windows, -(-self._tokens // self.size))
        self._folder, self._until_s = folder, time.monotonic() + seconds
        self._threads = threads
        self._store = ReadyStore(folder)

    def start(self, window: int) -> int:
        """Where a window of the text begins; the last one ends with the text."""
        return min(window * self.size, self._tokens - self.size)

    def losses(self, cuts: Sequence[int], precision: Precision) -> Losses | None:
        """Of every predicted token; None where there was not the time for all windows."""
        name = f"{self.facts.name}-{'-'.join(map(str, cuts))}-{precision}.npy"
        kept = self._folder / name.replace(" ", "_")
        found = list(np.load(kept)) if kept.exists() else []
        if len(found) < self.windows and time.monotonic() < self._until_s:
            found += self._measured(cuts, precision, len(found))
            np.save(kept, np.stack(found))
        return np.concatenate(found[: self.windows]) if len(found) >= self.windows else None

    def _measured(self, cuts: Sequence[int], precision: Precision, first: int) -> Iterator[Losses]:
        """Of the windows from one on, as far as the time goes."""
        specs = stages_of(self.facts, cuts, precision, self.size, self._threads)
        engines = [load_engine(spec, self._file, self._store, EngineOptions()) for spec in specs]
        pipeline = InProcessPipeline(self.facts, engines)
        try:
            for window in range(first, self.windows):
                yield window_losses(pipeline, self._golden, self.start(window))
                if time.monotonic() > self._until_s:
                    return
        finally:
            pipeline.close()


def table(bench: Bench, cuts: Sequence[Sequence[int]], precisions: Sequence[Precision]) -> None:
    """Print a line for each cut and precision that is complete."""
    hidden = bench.facts.hidden
    raw = bench.losses((), Precision.RAW)
    found = {(tuple(cut), one): bench.losses(cut, one) for cut in cuts for one in precisions}
    if raw is None:
        print("raw links are not complete: run it again")
        return
    print(f"{'boundaries before':20} {'link':5} {'bytes a token':>13} {'bits a value':>12} {'perplexity':>11}")
    whole = token_bytes(hidden, Precision.RAW, ElementType.F32)
    print(f"{'any':20} {'raw':5} {whole:13} {32:12} {math.exp(raw.mean()):11.4f}", flush=True)
    for (cut, precision), losses in found.items():
        if losses is None:
            print(f"{' '.join(map(str, cut)):20} {precision:5} not complete: run it again")
            continue
        more = losses - raw
        size = token_bytes(hidden, precision, ElementType.F32)
        error = 100 * more.std() / math.sqrt(len(more))
        print(
            f"{' '.join(map(str, cut)):20} {precision:5} {size:13} {8 * size / hidden:12.3f} "
            f"{math.exp(raw.mean() + more.mean()):11.4f} {100 * math.expm1(more.mean()):+.2f} % ± {error:.2f}",
            flush=True,
        )


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--cuts", type=int, nargs="+", action="append", required=True)
    parser.add_argument("--precisions", type=Precision, nargs="+", default=[Precision.INT8, Precision.INT4])
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a folder for what was measured, to go on from")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this time")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(given.model, given.windows, given.threads, folder, given.seconds)
        tokens = bench.start(bench.windows - 1) + bench.size
        print(f"{bench.facts.name}, {tokens} tokens; {describe_machine()}")
        table(bench, given.cuts, given.precisions)


if __name__ == "__main__":
    main()
