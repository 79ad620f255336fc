"""What packing costs a stage in the middle: its step with int8 and int4 links against the same step with raw links.

    python benchmarks/packing.py [MODEL] [--layers 10] [--threads 1] [--rounds 200]
    python benchmarks/packing.py --hidden 4096 [--layers 4] …      random 4-bit weights of an 8B model's proportions
    python benchmarks/packing.py … --operators                     also the operators that take longest, by profile

First what loading takes: the first one converts the weights (of a model's file), the others have them from its store,
and int4's tables are made. Then the engines take turns, step by step, over random values as each link carries them.
Prints the raw step's median, and for each precision the median of the differences within a turn, ± its standard error,
in microseconds and as a share of the raw step: one token, 8 rows of one token, a chunk of 64. `codecs`: both codecs
alone, warm, in a session of nothing else, less what a session of nothing takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto

from hyperlane.bench.machine import describe_machine
from hyperlane.config import Paths, load
from hyperlane.core import Epoch, HeadId, LayerRange, ModelFacts, Precision, Row, StageSpec
from hyperlane.graph import wire_codec
from hyperlane.graph.builder import GraphBuilder
from hyperlane.models import inventory
from hyperlane.models.download import pull
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.synthetic import SyntheticSource
from hyperlane.models.weights import TensorSource
from hyperlane.stage.engine import Engine
from hyperlane.stage.loading import load_engine
from hyperlane.store.ready_store import ReadyStore

SLOTS, CHUNK, CONTEXT = 8, 64, 512
PACKED = (Precision.INT8, Precision.INT4)
RUNS = 50
"""Of the codecs alone."""

STEPS: dict[str, Sequence[Row]] = {
    "1 token": (Row(0, CHUNK, 1),),
    "8 rows": tuple(Row(slot, CHUNK if slot == 0 else 0, 1) for slot in range(SLOTS)),
    "chunk of 64": (Row(0, 0, CHUNK),),
}

Floats = npt.NDArray[np.float32]


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


@contextmanager
def model_of(given: argparse.Namespace) -> Iterator[tuple[ModelFacts, TensorSource]]:
    """The model's own weights, or random ones of an 8B Llama's proportions."""
    with GgufFile(pull(given.model, load(Paths).models)) as file:
        facts = read_facts(file)
        if not given.hidden:
            yield facts, file
            return
        hidden, count = given.hidden, 3 * given.layers
        shape = replace(
            facts, name=f"random, hidden {hidden}", layers=count, hidden=hidden, heads=hidden // 128,
            kv_heads=max(1, hidden // 512), head_dim=128, ffn=hidden * 7 // 2,
            rope=replace(facts.rope, dims=128, factors=()),
        )  # fmt: skip
        types = ("Q4_0",) * len(inventory.layer_tensors(shape, 0))
        yield shape, SyntheticSource(shape, (types,) * count, "Q8_0", "Q8_0")


def codecs(hidden: int, precision: Precision | None, *, packs: bool = True, unpacks: bool = True) -> bytes:
    """A graph that packs, and unpacks what it packed; or, without a precision, one that only passes on."""
    graph = GraphBuilder("codecs")
    gains = np.linspace(0.5, 2, hidden).astype(np.float32)
    kind, sizes = (TensorProto.FLOAT, ["batch", "tokens", hidden]) if packs else (TensorProto.UINT8, ["b", "t", "n"])
    x = graph.input("x", kind, sizes)
    if precision is None:
        graph.output(graph.node("Identity", [x], "y"), kind, sizes)
        return graph.model([])
    if packs:
        x = wire_codec.pack(graph, x, hidden, precision, "packed", gains=gains)
    if unpacks:
        x = wire_codec.unpack(graph, x, hidden, precision, "y", gains=gains)
    graph.output(x, TensorProto.FLOAT if unpacks else TensorProto.UINT8, ["b", "t", "n"])
    return graph.model([])


def session(model: bytes, threads: int, *, profile: str = "") -> ort.InferenceSession:
    """On the CPU, as stages have it."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile:
        settings.enable_profiling, settings.profile_file_prefix = True, profile
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def sent(values: Floats, precision: Precision) -> bytes:
    """Hidden states as a link carries them."""
    if precision is Precision.RAW:
        return values.tobytes()
    (packed,) = session(codecs(values.shape[-1], precision, unpacks=False), 1).run(None, {"x": values})
    return bytes(packed)


def values_of(hidden: int, rows: Sequence[Row]) -> Floats:
    """Like a residual stream: a few channels are much larger than the others."""
    random = np.random.default_rng(0)
    values = random.standard_normal((1, sum(row.count for row in rows), hidden))
    values[..., ::97] *= 30
    return values.astype(np.float32)


def step(engine: Engine, rows: Sequence[Row], data: bytes) -> Callable[[], None]:
    """A step over such bytes."""

    def run() -> None:
        engine.input_buffer(rows)[:] = data
        engine.step(rows)

    return run


def times_us(turns: Sequence[Callable[[], None]], rounds: int) -> npt.NDArray[np.float64]:
    """Microseconds of each, all taken in turns, float64 [rounds, turns]; who goes first changes."""
    found = np.empty((rounds, len(turns)))
    for number in range(rounds):
        for place in np.roll(np.arange(len(turns)), number):
            began = time.perf_counter()
            turns[place]()
            found[number, place] = 1e6 * (time.perf_counter() - began)
    return found


def share(times: npt.NDArray[np.float64], place: int) -> str:
    """The median difference to the first column."""
    raw, more = float(np.median(times[:, 0])), times[:, place] - times[:, 0]
    low, high = np.percentile(more, [25, 75])
    error = 1.2533 * (high - low) / 1.349 / len(more) ** 0.5
    return f"{np.median(more):+.0f} ± {error:.0f} ({100 * np.median(more) / raw:+.1f} ± {100 * error / raw:.1f} %)"


def alone(hidden: int, precision: Precision, rows: Sequence[Row], threads: int) -> float:
    """Microseconds of both codecs alone."""
    values = values_of(hidden, rows)
    both, nothing = (session(codecs(hidden, one), threads) for one in (precision, None))
    times = [
        statistics.median(times_us([lambda one=one: one.run(None, {"x": values})], RUNS)[:, 0])  # type: ignore[misc]
        for one in (both, nothing)
    ]
    return times[0] - times[1]


def show_operators(hidden: int, precision: Precision, rows: Sequence[Row], threads: int, folder: str) -> None:
    """What each operator of both codecs takes, by ONNX Runtime's own profile, those that take most."""
    profiled = session(codecs(hidden, precision), threads, profile=f"{folder}/{precision}")
    for _ in range(RUNS):
        profiled.run(None, {"x": values_of(hidden, rows)})
    events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    total = Counter[str]()
    for event in nodes:
        total[f"{event['args']['op_name']} {event['name'].removesuffix('_kernel_time')}"] += event["dur"]
    print(f"  {precision}: {len(total)} operators, {sum(total.values()) / RUNS:.0f} µs and their timing, the longest:")
    for name, spent in total.most_common(8):
        print(f"    {spent / RUNS:6.1f} µs  {name}")


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--hidden", type=int, help="random weights of this hidden size, a multiple of 512")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200, help="of one token; fewer for what takes longer")
    parser.add_argument("--operators", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, model_of(given) as (facts, source), ExitStack() as parts:
        store = None if given.hidden else ReadyStore(Path(folder))
        specs = [middle(facts, given.layers, precision, given.threads) for precision in (Precision.RAW, *PACKED)]
        print(f"{facts.name}, layers {specs[0].layers}, {given.threads} thread(s); {describe_machine()}")
        engines = []
        for spec in specs:
            began = time.perf_counter()
            engines.append(load_engine(spec, source, store))
            parts.callback(engines[-1].close)
            print(f"{spec.precision_in}: loaded in {time.perf_counter() - began:.2f} s")
        for name, rows in [("chunk of 64", STEPS["chunk of 64"]), *list(STEPS.items())[:2]]:
            values = values_of(facts.hidden, rows)
            turns = [
                step(engine, rows, sent(values, spec.precision_in)) for engine, spec in zip(engines, specs, strict=True)
            ]
            tokens = sum(row.count for row in rows)
            times = times_us(turns, max(20, given.rounds // (10 if tokens == CHUNK else 1)))
            print(f"{name}: raw {np.median(times[:, 0]):.0f} µs")
            for place, precision in enumerate(PACKED, 1):
                own = alone(facts.hidden, precision, rows, given.threads)
                print(f"  {precision}: {share(times, place)}; codecs {own:.0f} µs", flush=True)
                if given.operators:
                    show_operators(facts.hidden, precision, rows, given.threads, folder)


if __name__ == "__main__":
    main()
