"""Perplexity of a real model on other devices beside the CPU's, token by token.

    python benchmarks/gpu_perplexity.py MODEL [--devices cuda webgpu] [--file FILE] [--windows 39] [--threads 2]

MODEL: smollm2 or gemma3, whose text is in tests/data; `--file`: where its GGUF file lies, otherwise it is fetched. 39
windows of 512 tokens are the whole text, of which 9,945 tokens are predicted. `±`: standard error of the difference.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from wire_precision import DATA, MODELS, stages_of

from hyperlane.bench.machine import describe_machine
from hyperlane.config import Paths, load
from hyperlane.core import Precision
from hyperlane.models.download import pull
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import REFERENCE, EngineOptions
from hyperlane.store.ready_store import ReadyStore
from hyperlane.testing.engines import InProcessPipeline
from hyperlane.testing.perplexity import window_losses


def losses_on(path: Path, name: str, options: EngineOptions, windows: int, threads: int) -> npt.NDArray[np.float64]:
    """Of every predicted token, computed by one engine."""
    golden = DATA / f"golden_{name}.npz"
    size = int(np.load(golden)["window"])
    with GgufFile(path) as file, tempfile.TemporaryDirectory() as folder:
        facts = read_facts(file)
        (spec,) = stages_of(facts, (), Precision.RAW, size, threads)
        pipeline = InProcessPipeline(facts, [load_engine(spec, file, ReadyStore(Path(folder)), options)])
        try:
            return np.concatenate([window_losses(pipeline, golden, at * size) for at in range(windows)])
        finally:
            pipeline.close()


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--devices", nargs="+", default=["cuda"])
    parser.add_argument("--file", type=Path)
    parser.add_argument("--windows", type=int, default=39)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    path = given.file or pull(MODELS[given.model], load(Paths).models)
    ways = {"cpu, float32": REFERENCE, "cpu": EngineOptions()}
    ways |= {device: EngineOptions(device=device) for device in given.devices}
    print(f"{given.model}; {describe_machine()}")
    first: npt.NDArray[np.float64] | None = None
    for way, options in ways.items():
        found = losses_on(path, given.model, options, given.windows, given.threads)
        first = found if first is None else first
        more = found - first
        error = 100 * more.std() / math.sqrt(len(more))
        change = f"{100 * math.expm1(more.mean()):+.2f} % ± {error:.2f}"
        print(f"{way:14} {len(found)} tokens, perplexity {math.exp(found.mean()):.4f} {change}", flush=True)


if __name__ == "__main__":
    main()
