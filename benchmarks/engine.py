"""Times one engine alone, without links and head: the whole model as one stage in this process.

    python benchmarks/engine.py [MODEL] [--threads 1 2] [--kv f32 f16] [--rounds 5] [--json FILE] [--llama-bench PATH]

MODEL is a name of the catalogue or a GGUF file. Prints medians in tokens per second of a prompt of 512, and of 128
decoded tokens for 1 and 8 streams; engines take turns in every round, and so does llama.cpp's `llama-bench` if given.
*One by one*: the same 128 tokens in rows of 16 that are taken one by one, as a replay takes them. *Shared*: the time of
a frame of 4 decode rows and 8 tokens of a prompt, divided by the time of the two in frames of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyperlane.bench.machine import describe_machine
from hyperlane.config import Paths, load
from hyperlane.core import Epoch, HeadId, LayerRange, ModelFacts, Row, StageSpec
from hyperlane.models import catalogue
from hyperlane.models.download import pull
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.engine import Engine
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import EngineOptions, KvElement
from hyperlane.store.ready_store import ReadyStore

PROMPT, NEW, STREAMS = 512, 128, 8
SHARED_ROUNDS = 21


@dataclass(frozen=True, slots=True)
class Figures:
    """Tokens per second, and seconds to load."""

    name: str
    prefill: float
    decode: float
    decode_of_8: float
    load_s: float = 0.0
    one_by_one: float = 0.0
    shared: float = 0.0


def prefill(engine: Engine, facts: ModelFacts) -> float:
    """Tokens per second of a prompt whose last token alone is asked for."""
    row = Row(0, 0, PROMPT, (PROMPT - 1,))
    tokens = np.random.default_rng(0).integers(0, facts.vocab, PROMPT, np.int32)
    return PROMPT / _timed(lambda: _step(engine, (row,), tokens))


def decode(engine: Engine, facts: ModelFacts, streams: int) -> float:
    """Tokens per second of streams that decode together, one token of each a step, after prompts of 16."""
    tokens = np.random.default_rng(0).integers(0, facts.vocab, 16, np.int32)
    for slot in range(streams):
        _step(engine, (Row(slot, 0, 16, (15,)),), tokens)

    def run() -> None:
        for position in range(16, 16 + NEW):
            _step(engine, [Row(slot, position, 1, (0,)) for slot in range(streams)], tokens[:streams])

    return streams * NEW / _timed(run)


def one_by_one(engine: Engine, facts: ModelFacts) -> float:
    """Tokens per second of one stream's tokens, computed again after a prompt of 16."""
    tokens = np.random.default_rng(0).integers(0, facts.vocab, 16, np.int32)
    _step(engine, (Row(0, 0, 16, (15,)),), tokens)

    def run() -> None:
        for position in range(16, 16 + NEW, 16):
            _step(engine, (Row(0, position, 16, one_by_one=True),), tokens)

    return NEW / _timed(run)


def shared(engine: Engine, facts: ModelFacts) -> float:
    """Decode rows and a prompt's tokens in one frame, against two; medians."""
    tokens = np.random.default_rng(0).integers(0, facts.vocab, 128, np.int32)
    for slot in range(5):
        _step(engine, (Row(slot, 0, 128),), tokens)
    rows, prompt = [Row(slot, 128, 1, (0,)) for slot in range(4)], Row(4, 64, 8)

    def time_of(frame: Sequence[Row]) -> float:
        return _timed(lambda: _step(engine, frame, tokens[: sum(row.count for row in frame)]))

    times = [[time_of(frame) for frame in (rows, [prompt], [*rows, prompt])] for _ in range(SHARED_ROUNDS)]
    alone, other, both = (statistics.median(column) for column in zip(*times, strict=True))
    return both / (alone + other)


def measure(name: str, engine: Engine, facts: ModelFacts, load_s: float) -> Figures:
    """One round of everything."""
    rates = prefill(engine, facts), decode(engine, facts, 1), decode(engine, facts, STREAMS)
    return Figures(name, *rates, load_s, one_by_one(engine, facts), shared(engine, facts))


def llama_bench(program: Path, model: Path, threads: int) -> Figures:
    """One round of llama.cpp; its decode of 8 needs another program and is left out."""
    command = [program, "-m", model, "-p", str(PROMPT), "-n", str(NEW), "-t", str(threads), "-r", "1", "-o", "json"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    rates = [test["avg_ts"] for test in json.loads(done.stdout)]
    return Figures(f"llama.cpp, {threads} threads", rates[0], rates[1], 0.0)


def _step(engine: Engine, rows: Sequence[Row], tokens: np.ndarray) -> None:
    engine.input_buffer(rows)[:] = tokens.tobytes()
    engine.step(rows)


def _timed(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _spec(facts: ModelFacts, threads: int) -> StageSpec:
    return StageSpec(
        facts, Epoch(HeadId(bytes(16)), 1), 0, 1, LayerRange(0, facts.layers), STREAMS, 1024, threads, PROMPT
    )


def _median(figures: list[Figures]) -> Figures:
    def middle(name: str) -> float:
        return statistics.median(getattr(one, name) for one in figures)

    names = ("prefill", "decode", "decode_of_8", "load_s", "one_by_one", "shared")
    return Figures(figures[0].name, *(middle(name) for name in names))


def _open(model: str) -> Path:
    return pull(model, load(Paths).models) if catalogue.find(model) is not None else Path(model)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--kv", type=KvElement, nargs="+", default=[EngineOptions().kv])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--llama-bench", type=Path)
    given = parser.parse_args()
    path = _open(given.model)
    rows = [_median(rounds) for rounds in _measure_all(path, given)]
    print(f"{path.name}; {describe_machine()}; load average {os.getloadavg()[0]:.1f}")
    rates = f"{'prefill 512':>12} {'decode 1':>10} {'decode 8':>10} {'one by one':>10}"
    print(f"{'engine':28} {rates} {'shared':>8} {'load s':>8}")
    for row in rows:
        print(
            f"{row.name:28} {row.prefill:12.1f} {row.decode:10.1f} {row.decode_of_8:10.1f} "
            f"{row.one_by_one:10.1f} {row.shared:8.2f} {row.load_s:8.2f}"
        )
    if given.json:
        report = {"machine": dataclasses.asdict(describe_machine()), "rows": [dataclasses.asdict(row) for row in rows]}
        given.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


def _measure_all(path: Path, given: argparse.Namespace) -> list[list[Figures]]:
    store = ReadyStore(load(Paths).ready)
    turns: list[Callable[[], Figures]] = []
    with GgufFile(path) as file:
        facts = read_facts(file)
        for threads in given.threads:
            for kv in given.kv:
                begin = time.perf_counter()
                engine = load_engine(_spec(facts, threads), file, store, EngineOptions(kv=kv))
                turns.append(_turn(f"hyperlane {kv}, {threads} threads", engine, facts, time.perf_counter() - begin))
            if given.llama_bench:
                turns.append(lambda threads=threads: llama_bench(given.llama_bench, path, threads))
    rounds = [[turn() for turn in turns] for _ in range(given.rounds)]
    return [list(one) for one in zip(*rounds, strict=True)]


def _turn(name: str, engine: Engine, facts: ModelFacts, load_s: float) -> Callable[[], Figures]:
    return lambda: measure(name, engine, facts, load_s)


if __name__ == "__main__":
    main()
