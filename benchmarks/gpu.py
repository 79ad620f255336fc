"""Times one engine alone on a GPU: Llama-3-8B's shape with random weights, made while it loads; no file is needed.

    python benchmarks/gpu.py [--type Q4_0] [--layers 32] [--context 1024] [--slots 32] [--rounds 5] [--json FILE]
        [--depths 1000] [--projection Q8_0] [--device cuda:0] [--no-capture]

Prints medians of `--rounds`: a prompt of 512, one stream's decode with `--depths` tokens before it, and decode of 2,
8 … `--slots` streams of 128 tokens. `--type` is that of all matrices but the projection, which is `--projection`, and
the embedding, Q8_0.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hyperlane.bench.machine import describe_machine
from hyperlane.core import Epoch, HeadId, LayerRange, ModelFacts, RopeFacts, Row, StageSpec
from hyperlane.models.random_blocks import random_matrix
from hyperlane.models.weights import TensorInfo
from hyperlane.stage.engine import Engine
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import EngineOptions

PROMPT, STEPS, STREAM_PROMPT = 512, 64, 128
SEED_ROWS = 64
"""Rows of random blocks that are made; a matrix repeats them."""


def llama_3_8b(layers: int) -> ModelFacts:
    """The published shape, with fewer layers if asked."""
    return ModelFacts(
        name="llama-3-8b shape", family="llama", fingerprint="0" * 64, layers=layers, hidden=4096, heads=32,
        kv_heads=8, head_dim=128, ffn=14336, vocab=128_256, context=8192, rms_eps=1e-5,
        rope=RopeFacts(theta=500_000.0, dims=128), tied_output=False,
    )  # fmt: skip


class RandomWeights:
    """Implements `TensorSource`: matrices of one type, made as they are read."""

    def __init__(self, facts: ModelFacts, kind: str, projection: str = "Q8_0") -> None:
        """All matrices are of type `kind` but the projection and the embedding, which is Q8_0."""
        self._kinds = {"output.weight": projection, "token_embd.weight": "Q8_0"}
        self._kind = kind
        hidden, kv, ffn = facts.hidden, facts.kv_heads * facts.head_dim, facts.ffn
        layer = {
            "attn_q": (facts.heads * facts.head_dim, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden),
            "attn_output": (hidden, facts.heads * facts.head_dim), "ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden),
            "ffn_down": (hidden, ffn), "attn_norm": (hidden,), "ffn_norm": (hidden,),
        }  # fmt: skip
        self._shapes = {f"blk.{i}.{name}.weight": shape for i in range(facts.layers) for name, shape in layer.items()}
        self._shapes |= {"token_embd.weight": (facts.vocab, hidden), "output.weight": (facts.vocab, hidden)}
        self._shapes["output_norm.weight"] = (hidden,)

    def info(self, name: str) -> TensorInfo | None:
        """See `TensorSource`."""
        shape = self._shapes.get(name)
        if shape is None:
            return None
        kind = self._type(name, shape)
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        return TensorInfo(name, shape, kind, int(np.prod(shape)) // block * size)

    def names(self) -> Sequence[str]:
        """See `TensorSource`."""
        return list(self._shapes)

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource`."""
        shape = self._shapes[name]
        if len(shape) == 1:
            return np.ones(shape, np.float32).view(np.uint8)
        return _random(self._type(name, shape), *shape)

    def _type(self, name: str, shape: tuple[int, ...]) -> str:
        if len(shape) == 1:
            return "F32"
        return self._kinds.get(name, self._kind)


@functools.cache
def _random(kind: str, rows: int, columns: int) -> np.ndarray:
    some = random_matrix(kind, SEED_ROWS, columns, std=columns**-0.5, random=np.random.default_rng(columns))
    return np.tile(some, (rows // SEED_ROWS, 1)).reshape(-1)


@dataclass(frozen=True, slots=True)
class Figure:
    """Tokens per second, the median of some rounds, and the milliseconds of one step."""

    name: str
    rate: float
    step_ms: float


class Bench:
    """One engine and what is asked of it."""

    def __init__(self, engine: Engine, facts: ModelFacts, rounds: int) -> None:
        """Repeat everything `rounds` times, after one that does not count."""
        self._engine, self._vocab, self._rounds = engine, facts.vocab, rounds
        self._random = np.random.default_rng(0)

    def prefill(self, count: int) -> Figure:
        """A prompt whose last token alone is asked for."""
        row = Row(0, 0, count, (count - 1,))
        return self._figure(f"prefill of {count}", lambda: self._step([row]), count, 1)

    def decode(self, streams: int, depth: int) -> Figure:
        """Streams that decode together, one token of each a step, after `depth` tokens."""
        self._fill(streams, depth)

        def run() -> None:
            for position in range(depth, depth + STEPS):
                self._step([Row(slot, position, 1, (0,)) for slot in range(streams)])

        return self._figure(f"decode of {streams} after {depth}", run, streams * STEPS, STEPS)

    def _fill(self, streams: int, depth: int) -> None:
        for slot in range(streams):
            for start in range(0, depth, PROMPT):
                self._step([Row(slot, start, min(PROMPT, depth - start))])

    def _step(self, rows: list[Row]) -> None:
        tokens = self._random.integers(0, self._vocab, sum(row.count for row in rows), np.int32)
        self._engine.input_buffer(rows)[:] = tokens.tobytes()
        self._engine.step(rows)

    def _figure(self, name: str, run: Callable[[], None], tokens: int, steps: int) -> Figure:
        run()
        times = []
        for _ in range(self._rounds):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        middle = statistics.median(times)
        figure = Figure(name, tokens / middle, 1000 * middle / steps)
        print(f"{figure.name:28} {figure.rate:12.1f} tokens/s {figure.step_ms:9.3f} ms a step", flush=True)
        return figure


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", default="Q4_0")
    parser.add_argument("--projection", default="Q8_0")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--context", type=int, default=1088)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depths", type=int, nargs="*", default=[16, 1000])
    parser.add_argument("--streams", type=int, nargs="*", default=[2, 4, 8, 16, 32])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--no-capture", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    facts = llama_3_8b(given.layers)
    name, _, index = given.device.partition(":")
    options = EngineOptions(device=name, device_index=int(index or 0), capture=not given.no_capture)
    layers, epoch = LayerRange(0, given.layers), Epoch(HeadId(bytes(16)), 1)
    spec = StageSpec(facts, epoch, 0, 1, layers, given.slots, given.context, os.cpu_count() or 1, PROMPT)
    begin = time.perf_counter()
    before = taken_mib()
    engine = load_engine(spec, RandomWeights(facts, given.type, given.projection), options=options)
    print(f"{describe_machine()}; {card()}")
    kinds = f"{given.type}, projection {given.projection}"
    print(f"{facts.name}, {given.layers} layers, {kinds}; {given.slots} slots of {given.context}; {given.device}")
    print(f"made and loaded in {time.perf_counter() - begin:.1f} s; the card's memory: {taken_mib() - before} MiB more")
    bench = Bench(engine, facts, given.rounds)
    figures = [bench.prefill(PROMPT), *(bench.decode(1, depth) for depth in given.depths)]
    figures += [bench.decode(streams, STREAM_PROMPT) for streams in given.streams if streams <= given.slots]
    engine.close()
    if given.json:
        given.json.write_text(json.dumps([dataclasses.asdict(figure) for figure in figures], indent=2), "utf-8")


def taken_mib() -> int:
    """MiB of the card's memory that are in use; 0 where there is no such card."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(query, capture_output=True, check=True, text=True).stdout.split()[0])
    except (OSError, subprocess.CalledProcessError):
        return 0


def card() -> str:
    """The card and its driver, as nvidia-smi names them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no NVIDIA card"


if __name__ == "__main__":
    main()
