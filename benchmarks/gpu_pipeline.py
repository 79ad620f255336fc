"""Times whole pipelines on one GPU beside the engine alone: Llama-3-8B's shape with random weights, no download.

    python benchmarks/gpu_pipeline.py [--type Q4_0] [--workers 1 2 4] [--slots 32] [--context 1088] [--layers 32]
        [--depth 960] [--repetitions 3] [--wire raw] [--device cuda:0] [--file FILE] [--no-engine] [--json FILE]

Writes a model file, which is kept if `--file` says where; loads it into one engine of this process and times that;
then serves it with `--workers` worker processes that share the device, over loopback, and times requests. Prints
medians in tokens/s and each figure's share of the engine's own.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpu import PROMPT, Bench, card

from hyperlane.bench.machine import describe_machine
from hyperlane.bench.workload import Sample, Workload, run_workload
from hyperlane.cluster.report import Progress
from hyperlane.config import Paths, ServeConfig
from hyperlane.core import Epoch, HeadId, LayerRange, StageSpec, TextGenerator
from hyperlane.models.digests import DigestCache
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.source import facts_of, open_model
from hyperlane.node import start_serving
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import EngineOptions
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model

ALONE = 128
"""Tokens of one stream."""

STREAM_PROMPT, NEW_TOKENS = 128, 129
CHUNK = PROMPT * 4 // 3
"""A scheduler's chunk is at most three quarters of a frame, and the prompt is to be one."""


def model(kind: str, layers: int) -> TinyModel:
    """Llama-3-8B's published shape; the embedding and the projection 8 bit."""
    return TinyModel(
        layers=layers, hidden=4096, heads=32, kv_heads=8, ffn=14336, vocab=128_256, type=kind, context=131_072,
        embedding_type="Q8_0", distinct_rows=64,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figures:
    """Tokens per second. `ready_s`: until a real token came through."""

    name: str
    prefill: float
    one: float
    many: float
    ready_s: float
    hop_us: float = 0.0


def engine_figures(path: Path, given: argparse.Namespace) -> Figures:
    """The engine alone, in this process."""
    name, _, index = given.device.partition(":")
    began = time.perf_counter()
    with GgufFile(path) as file:
        facts = read_facts(file)
        everything, epoch = LayerRange(0, facts.layers), Epoch(HeadId(bytes(16)), 1)
        threads, tokens = os.cpu_count() or 1, PROMPT + given.slots
        spec = StageSpec(facts, epoch, 0, 1, everything, given.slots, given.context, threads, tokens)
        engine = load_engine(spec, file, options=EngineOptions(device=name, device_index=int(index or 0)))
    ready_s = time.perf_counter() - began
    bench = Bench(engine, facts, given.repetitions)
    found = [bench.prefill(PROMPT), bench.decode(1, given.depth), bench.decode(given.slots, STREAM_PROMPT)]
    engine.close()
    return Figures("engine alone", *(figure.rate for figure in found), ready_s)


def pipeline_figures(path: Path, home: Path, workers: int, given: argparse.Namespace) -> Figures:
    """Worker processes on the device, behind a head that has hashed the file before."""
    paths = dataclasses.replace(Paths(), cache=home / "cache", state=home / "state")
    config = ServeConfig(
        model=str(path), local_workers=workers, slots=given.slots, context=given.context, prompt_chunk=CHUNK,
        device=given.device, measure="never", wire=given.wire, paths=paths,
    )  # fmt: skip
    with open_model(path, DigestCache(paths.digests)) as source:
        facts_of(source, None)
    began = time.perf_counter()

    def report(progress: Progress) -> None:
        print(f"  {time.perf_counter() - began:6.2f} s {progress.who}: {progress.phase} {progress.done}", flush=True)

    serving = start_serving(config, report if given.verbose else lambda _progress: None)
    try:
        ready_s = time.perf_counter() - began
        return measured(serving.service, f"{workers} worker{'s' * (workers > 1)}", ready_s, given)
    finally:
        serving.close()


def measured(service: TextGenerator, name: str, ready_s: float, given: argparse.Namespace) -> Figures:
    """Medians of what requests took."""

    def samples(work: Workload) -> list[Sample]:
        run_workload(service, work, primed=work.streams > 1)
        return [run_workload(service, work, seed, primed=work.streams > 1) for seed in range(given.repetitions)]

    prefill = statistics.median(sample.prefill_rate for sample in samples(Workload(PROMPT, 1)))
    many = statistics.median(sample.decode_rate for sample in samples(Workload(STREAM_PROMPT, NEW_TOKENS, given.slots)))
    one = statistics.median(sample.decode_rate for sample in samples(Workload(given.depth, ALONE)))
    return Figures(name, prefill, one, many, ready_s, service.status().hop_us)


@contextlib.contextmanager
def model_file(given: argparse.Namespace) -> Iterator[Path]:
    """The model's file, written if it is not there."""
    with tempfile.TemporaryDirectory() as folder:
        path = given.file or Path(folder) / "shape.gguf"
        if not path.exists():
            write_tiny_model(path, model(given.type, given.layers))
        yield path


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", default="Q4_0")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--context", type=int, default=1088)
    parser.add_argument("--depth", type=int, default=960)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--wire", default="raw")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--no-engine", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="print how loading goes")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    print(f"{describe_machine()}; {card()}")
    print(f"Llama-3-8B's shape, {given.layers} layers of {given.type}; {given.slots} slots of {given.context}")
    print(f"| | prefill of {PROMPT} | one stream after {given.depth} | {given.slots} streams | ready | hop |")
    print("|---|---|---|---|---|---|")
    found: list[Figures] = []
    with model_file(given) as path, tempfile.TemporaryDirectory() as home:
        runs = [] if given.no_engine else [lambda: engine_figures(path, given)]
        runs += [partial(pipeline_figures, path, Path(home), workers, given) for workers in given.workers]
        for run in runs:
            row = run()
            found.append(row)
            pairs = [(row.prefill, found[0].prefill), (row.one, found[0].one), (row.many, found[0].many)]
            shares = " | ".join(f"{mine:.0f} ({mine / max(first, 1):.0%})" for mine, first in pairs)
            print(f"| {row.name} | {shares} | {row.ready_s:.1f} s | {row.hop_us:.0f} µs |", flush=True)
    if given.json:
        given.json.write_text(json.dumps([dataclasses.asdict(row) for row in found], indent=2), "utf-8")


if __name__ == "__main__":
    main()
