"""How long a CPU stage takes until it is ready from its local store, and what of its weights lies in memory twice.

    python benchmarks/ready.py [smollm2-135m llama-3-8b] [--layers 8] [--threads 1] [--starts 3]

The whole model as one stage; `llama-3-8b`: `--layers` layers in the middle of that shape, random int4 weights in blocks
of 32 (Q4_0). Each load is in a process of its own: the first converts into a new store, the others find everything
there and are given a source of tensors that refuses to be read. A stage is ready when it has computed a token.
Prints seconds (medians of the later starts), and memory by kind: "anonymous" is what the process holds of its own,
grown since its imports; of a file that is mapped, what is resident. A prompt of 64 has read every weight by then. Each
line says what KV entries and buffers take of it. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from gpu import RandomWeights, llama_3_8b

from hyperlane.bench.machine import describe_machine
from hyperlane.config import Paths, load
from hyperlane.core import Epoch, HeadId, LayerRange, ModelFacts, Row, StageSpec
from hyperlane.models.download import pull
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.weights import TensorSource
from hyperlane.stage.engine import Engine
from hyperlane.stage.loading import load_engine, units
from hyperlane.store.ready_store import ReadyStore

SHAPE = "llama-3-8b"
ALL_LAYERS, PROMPT, SLOTS, CONTEXT = 32, 64, 8, 2048
MIB = 1 << 20


class NotRead:
    """Instead of a `TensorSource`, where nothing is to be converted."""

    def __getattr__(self, name: str) -> object:
        """Whoever asks for anything converts."""
        raise AssertionError(f"a later start asked its source for {name}")


@dataclass(frozen=True, slots=True)
class Start:
    """Of one load. Seconds of the load and until a token, and of the process until then; bytes."""

    load_s: float
    ready_s: float
    process_s: float
    weights: int
    anonymous: int
    mapped: int
    own: int


def spec_of(facts: ModelFacts, layers: int, threads: int) -> StageSpec:
    """The whole model, or so many layers in the middle of the large shape."""
    whole = facts.layers != ALL_LAYERS
    span = LayerRange(0, facts.layers) if whole else LayerRange(1, 1 + layers)
    return StageSpec(
        facts, Epoch(HeadId(bytes(16)), 1), 0 if whole else 1, 1 if whole else 3, span, SLOTS, CONTEXT, threads, PROMPT
    )


def one_start(name: str, layers: int, threads: int, store: Path, *, later: bool) -> Start:
    """Load and compute, in this process."""
    source: TensorSource
    if name == SHAPE:
        facts = llama_3_8b(ALL_LAYERS)
        source = RandomWeights(facts, "Q4_0")
    else:
        source = GgufFile(pull(name, load(Paths).models))
        facts = read_facts(source)
    spec = spec_of(facts, layers, threads)
    infos = [source.info(tensor) for unit in units(spec) for tensor in dict.fromkeys(unit.tensors)]
    weights = sum(info.nbytes for info in infos if info is not None)
    before, began_s = memory()[0], time.perf_counter()
    engine = load_engine(spec, NotRead() if later else source, ReadyStore(store))  # type: ignore[arg-type]
    load_s = time.perf_counter() - began_s
    compute(engine, spec, Row(0, 0, 1, (0,) if spec.is_last else ()))
    ready_s, process_s = time.perf_counter() - began_s, time.time() - process_began_s()
    compute(engine, spec, Row(0, 0, PROMPT, (PROMPT - 1,) if spec.is_last else ()))
    anonymous, mapped = memory()
    start = Start(load_s, ready_s, process_s, weights, anonymous - before, mapped, engine.private_bytes)
    engine.close()
    return start


def compute(engine: Engine, spec: StageSpec, row: Row) -> None:
    """A frame of one row."""
    buffer = engine.input_buffer((row,))
    if spec.is_first:
        np.frombuffer(buffer, np.int32)[:] = 5
    else:
        np.frombuffer(buffer, np.float32)[:] = np.random.default_rng(0).standard_normal(len(buffer) // 4, np.float32)
    engine.step((row,))


def memory() -> tuple[int, int]:
    """Resident bytes of this process that are anonymous, and that are of files in a store."""
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    anonymous = next(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Anonymous:"))
    mapped, ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        word = line.split(maxsplit=1)[0]
        if not word.endswith(":"):
            ours = "hyperlane-ready-" in line
        elif ours and word == "Rss:":
            mapped += int(line.split()[1]) << 10
    return anonymous, mapped


def process_began_s() -> float:
    """When this process was started, in seconds since the epoch."""
    return float(os.environ["BENCH_READY_BEGAN"])


def run(name: str, given: argparse.Namespace, store: Path, *, later: bool) -> Start:
    """One start in a process of its own."""
    words = [sys.executable, __file__, name, "--layers", str(given.layers), "--threads", str(given.threads)]
    words += ["--inside", str(store), *(["--later"] if later else [])]
    environ = {**os.environ, "BENCH_READY_BEGAN": str(time.time())}
    said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environ).stdout
    return Start(**json.loads(said.splitlines()[-1]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["smollm2-135m", SHAPE])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--starts", type=int, default=3, help="after the first")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--later", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside is not None:
        found = one_start(given.models[0], given.layers, given.threads, given.inside, later=given.later)
        print(json.dumps(asdict(found)))
        return
    print(f"{describe_machine()}; {given.threads} thread(s), medians of {given.starts} later starts\n")
    print("| | load | until a token | process | weights | ready file | mapped | anonymous | KV and buffers |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in given.models:
        with tempfile.TemporaryDirectory(prefix="hyperlane-ready-") as folder:
            store = Path(folder)
            first = run(name, given, store, later=False)
            others = [run(name, given, store, later=True) for _ in range(given.starts)]
            size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        middle = Start(
            *(statistics.median(getattr(one, field) for one in others) for field in Start.__dataclass_fields__)
        )
        print(line(f"{name}, first", first, size))
        print(line(f"{name}, later", middle, size), flush=True)


def line(name: str, start: Start, size: int) -> str:
    """One line of the table."""
    seconds = (f"{value:.2f} s" for value in (start.load_s, start.ready_s, start.process_s))
    sizes = (f"{value / MIB:,.0f} MiB" for value in (start.weights, size, start.mapped, start.anonymous, start.own))
    return f"| {' | '.join((name, *seconds, *sizes))} |"


if __name__ == "__main__":
    main()
