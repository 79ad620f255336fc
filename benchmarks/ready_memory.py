"""Where the memory goes that a CPU stage holds besides its mapped weights: what each part of its life adds.

    python benchmarks/ready_memory.py [smollm2-135m llama-3-8b] [--layers 4] [--threads 1]

The stages of `ready.py`, from a store that has everything. After each part the heap is trimmed and the process's
anonymous memory read, twice: as the engine is, and with sessions that give back what a run computed with (ONNX
Runtime's arena off), in which nothing but graphs, buffers and KV entries can stay. Weights copied would be in both.
Linux alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
from gpu import RandomWeights, llama_3_8b
from ready import ALL_LAYERS, MIB, PROMPT, SHAPE, NotRead, compute, memory, spec_of

from hyperlane.bench.machine import describe_machine
from hyperlane.config import Paths, load
from hyperlane.core import Row, StageSpec
from hyperlane.models.download import pull
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.models.weights import TensorSource
from hyperlane.stage import later, onnx_sessions
from hyperlane.stage.loading import load_engine, units
from hyperlane.stage.onnx_engine import OnnxEngine
from hyperlane.stage.residency import release_freed
from hyperlane.store.ready_store import ReadyStore

NEVER_S = 1e6


def stage(name: str, layers: int, threads: int) -> tuple[StageSpec, TensorSource, int]:
    """What is loaded, from where, and its bytes as a file."""
    source: TensorSource
    if name == SHAPE:
        facts = llama_3_8b(ALL_LAYERS)
        source = RandomWeights(facts, "Q4_0")
    else:
        source = GgufFile(pull(name, load(Paths).models))
        facts = read_facts(source)
    spec = spec_of(facts, layers, threads)
    infos = [source.info(tensor) for unit in units(spec) for tensor in dict.fromkeys(unit.tensors)]
    return spec, source, sum(info.nbytes for info in infos if info is not None)


def without_arena(made: Callable[..., ort.SessionOptions]) -> Callable[..., ort.SessionOptions]:
    """Settings of sessions that keep nothing between runs."""

    def settings(*arguments: object) -> ort.SessionOptions:
        found = made(*arguments)
        found.enable_cpu_mem_arena = False
        return found

    return settings


def life(spec: StageSpec, store: Path) -> dict[str, float]:
    """MiB of anonymous memory that each part added, in this process."""
    found: dict[str, float] = {}
    before = memory()[0]

    def note(part: str) -> None:
        nonlocal before
        release_freed()
        now = memory()[0]
        found[part], before = (now - before) / MIB, now

    want = (PROMPT - 1,) if spec.is_last else ()
    engine = load_engine(spec, NotRead(), ReadyStore(store))  # type: ignore[arg-type]
    assert isinstance(engine, OnnxEngine)
    note("load")
    compute(engine, spec, Row(0, 0, 1, (0,) if spec.is_last else ()))
    note("a token")
    compute(engine, spec, Row(0, 0, PROMPT, want))
    note(f"{PROMPT} tokens")
    compute(engine, spec, Row(0, PROMPT, PROMPT, want))
    note(f"{PROMPT} more")
    sessions = engine._sessions
    assert sessions is not None
    for other in (sessions.beside, sessions.singles):
        if other is not None:
            other.get()
    note("other sessions")
    engine.close()
    del sessions, engine
    note("closed")
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["smollm2-135m", SHAPE])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--no-arena", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside is not None:
        later.Later.__init__.__defaults__ = (NEVER_S,)  # type: ignore[misc]
        if given.no_arena:
            onnx_sessions._settings = without_arena(onnx_sessions._settings)
        print(json.dumps(life(stage(given.models[0], given.layers, given.threads)[0], given.inside)))
        return
    print(f"{describe_machine()}; {given.threads} thread(s); anonymous MiB that each part adds\n")
    for name in given.models:
        spec, source, weights = stage(name, given.layers, given.threads)
        with tempfile.TemporaryDirectory(prefix="hyperlane-ready-") as folder:
            load_engine(spec, source, ReadyStore(Path(folder))).close()
            words = [sys.executable, __file__, name, "--layers", str(given.layers), "--threads", str(given.threads)]
            for flag in ([], ["--no-arena"]):
                said = subprocess.run(
                    [*words, "--inside", folder, *flag], check=True, stdout=subprocess.PIPE, text=True
                )
                parts = json.loads(said.stdout.splitlines()[-1])
                told = " | ".join(f"{part} {mib:+.0f}" for part, mib in parts.items())
                print(f"{name}, weights {weights / MIB:,.0f}{', no arena' if flag else ''}: {told}", flush=True)


if __name__ == "__main__":
    main()
