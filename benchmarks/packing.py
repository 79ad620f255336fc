"""What packing costs a stage in the middle: its step with raw, int8 and int4 links, and the operators alone.

    python benchmarks/packing.py [MODEL] [--layers 10] [--threads 1] [--rounds 200]

The engines take turns, step by step. Prints medians in microseconds: one token, 8 rows of one token, a chunk of 64; in
brackets what both codecs alone take, in a session of nothing else, and their share of the raw step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from hyperlane.bench.machine import describe_machine
from hyperlane.config import Paths, load
from hyperlane.core import Epoch, HeadId, LayerRange, ModelFacts, Precision, Row, StageSpec
from hyperlane.graph import wire_codec
from hyperlane.graph.builder import GraphBuilder
from hyperlane.models.download import pull
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.engine import Engine
from hyperlane.stage.loading import load_engine
from hyperlane.store.ready_store import ReadyStore

SLOTS, CHUNK, CONTEXT = 8, 64, 512
SHOWN = (Precision.RAW, Precision.INT8, Precision.INT4)

STEPS: dict[str, Sequence[Row]] = {
    "1 token": (Row(0, CHUNK, 1),),
    "8 rows": tuple(Row(slot, CHUNK if slot == 0 else 0, 1) for slot in range(SLOTS)),
    "chunk of 64": (Row(0, 0, CHUNK),),
}


def middle(facts: ModelFacts, layers: int, precision: Precision, threads: int) -> StageSpec:
    """The second of three stages."""
    return StageSpec(
        model=facts,
        epoch=Epoch(HeadId(bytes(16)), 1),
        index=1,
        stages=3,
        layers=LayerRange(facts.layers // 3, facts.layers // 3 + layers),
        slots=SLOTS,
        context=CONTEXT,
        threads=threads,
        max_step_tokens=CHUNK,
        precision_in=precision,
        precision_out=precision,
    )


def codecs(hidden: int, precision: Precision, threads: int) -> ort.InferenceSession:
    """A session that packs, and unpacks what it packed."""
    graph = GraphBuilder("codecs")
    x = graph.input("x", TensorProto.FLOAT, ["batch", "tokens", hidden])
    packed = wire_codec.pack(graph, x, hidden, precision, "packed")
    graph.output(wire_codec.unpack(graph, packed, hidden, precision, "y"), TensorProto.FLOAT, ["b", "t", hidden])
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph.model([]), settings, providers=["CPUExecutionProvider"])


def step(engine: Engine, rows: Sequence[Row]) -> Callable[[], None]:
    """A step over what lies in the engine's input: zeros, which are valid at every precision."""

    def run() -> None:
        buffer = engine.input_buffer(rows)
        buffer[:] = bytes(len(buffer))
        engine.step(rows)

    return run


def alone(session: ort.InferenceSession, hidden: int, rows: Sequence[Row]) -> Callable[[], None]:
    """The operators on as many tokens."""
    tokens = sum(row.count for row in rows)
    values = np.random.default_rng(0).standard_normal((1, tokens, hidden)).astype(np.float32)
    return lambda: session.run(None, {"x": values})


def medians_us(turns: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    """Of each, all taken in turns."""
    times: list[list[float]] = [[] for _ in turns]
    for _ in range(rounds):
        for found, run in zip(times, turns, strict=True):
            began = time.perf_counter()
            run()
            found.append(1e6 * (time.perf_counter() - began))
    return [statistics.median(found) for found in times]


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, GgufFile(pull(given.model, load(Paths).models)) as file:
        facts, store = read_facts(file), ReadyStore(Path(folder))
        specs = [middle(facts, given.layers, precision, given.threads) for precision in SHOWN]
        engines = [load_engine(spec, file, store) for spec in specs]
        print(f"{facts.name}, layers {specs[0].layers}, {given.threads} thread(s); {describe_machine()}")
        sessions = [codecs(facts.hidden, precision, given.threads) for precision in (Precision.INT8, Precision.INT4)]
        print(f"{'step':12} {'raw':>9} {'int8':>9} {'int4':>9}   codecs alone")
        for name, rows in [("chunk of 64", STEPS["chunk of 64"]), *list(STEPS.items())[:2]]:
            turns = [step(engine, rows) for engine in engines]
            turns += [alone(session, facts.hidden, rows) for session in sessions]
            rounds = given.rounds // 10 if sum(row.count for row in rows) == CHUNK else given.rounds
            raw, int8, int4, *own = medians_us(turns, rounds)
            shares = ", ".join(f"{us:.0f} ({100 * us / raw:.1f} %)" for us in own)
            print(f"{name:12} {raw:9.0f} {int8:9.0f} {int4:9.0f}   {shares}", flush=True)


if __name__ == "__main__":
    main()
