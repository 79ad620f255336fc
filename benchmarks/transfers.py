"""Copies between the host and a card: what they cost by size and kind of memory, and what fusing them gives a step.

    python benchmarks/transfers.py [--device cuda:0] [--rounds 200] [--models smollm2 llama-1b] [--layers 4 15]

First copies of 4 KiB to 16 MiB with the wait for them, from page-locked and from pageable memory, as one and as two.
Then weights copied in through page-locked buffers of these sizes, filled by several threads, as a load does it. Then
steps of a stage in the middle of small models (random Q4_0 weights): what goes in beside the hidden states in one copy
with them, or in one of its own, two engines in turns. Medians.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from gpu import RandomWeights, card, llama_3_8b

from hyperlane.bench.machine import describe_machine
from hyperlane.core import Epoch, HeadId, LayerRange, ModelFacts, RopeFacts, Row, StageSpec
from hyperlane.stage import cuda
from hyperlane.stage.cuda import CudaMemory, load_runtime
from hyperlane.stage.engine import Engine
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import EngineOptions

KIB, MIB = 1 << 10, 1 << 20
SIZES = tuple(4 * KIB << (2 * step) for step in range(7))
LOADED, LOADS = 512 * MIB, 3
SLOTS, CONTEXT, CHUNK, ALL_LAYERS = 8, 1024, 64, 32
BATCHES = (1, 8)
BLOCK = 20
"""Steps of one engine before it is the other's turn."""

TO_DEVICE, TO_HOST = 1, 2


def median_us(run: Callable[[], object], rounds: int) -> float:
    """Microseconds of one call."""
    run()
    return statistics.median(timed_us(run) for _ in range(rounds))


def timed_us(run: Callable[[], object]) -> float:
    """Microseconds of this call."""
    began = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - began)


def copies(index: int, rounds: int) -> None:
    """Print a line for each size."""
    memory, runtime = CudaMemory(index), load_runtime()
    print("| bytes | to the card, page-locked | as two copies | pageable | back, page-locked | pageable |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        block, plain = memory.array((size,), np.uint8), np.ones(size, np.uint8)
        place, other = ctypes.c_void_p(memory.address(block)), ctypes.c_void_p(plain.ctypes.data)
        ways = (
            lambda block=block: (memory.push(block), memory.wait()),
            lambda block=block, half=size // 2: (memory.push(block[:half]), memory.push(block[half:]), memory.wait()),
            lambda a=place, b=other, size=size: runtime.cudaMemcpy(a, b, ctypes.c_size_t(size), TO_DEVICE),
            lambda block=block: (memory.pull(block), memory.wait()),
            lambda a=place, b=other, size=size: runtime.cudaMemcpy(b, a, ctypes.c_size_t(size), TO_HOST),
        )
        found = [median_us(run, rounds) for run in ways]
        print(f"| {size // KIB:,} KiB | {' | '.join(f'{us:.1f} µs' for us in found)} |", flush=True)
    memory.close()


def loads(index: int) -> None:
    """Print a line for each size of the page-locked buffers that weights go through."""
    weights = np.ones(LOADED, np.uint8)
    print(f"\n| page-locked buffers | {LOADED // MIB} MiB of weights | |\n|---|---|---|")
    usual = cuda._PART
    for size in SIZES[2:]:
        cuda._PART = size
        times = []
        for _ in range(LOADS):
            memory = CudaMemory(index)
            times.append(timed_us(lambda memory=memory: memory.copy_in([weights])))
            memory.close()
        us = statistics.median(times)
        mark = " (the engine's)" if size == usual else ""
        print(f"| {size // KIB:,} KiB{mark} | {us / 1e3:.1f} ms | {LOADED / us / 1e3:.1f} GB/s |", flush=True)
    cuda._PART = usual


def smollm2(layers: int) -> ModelFacts:
    """SmolLM2-135M's shape."""
    return ModelFacts(
        name="smollm2-135m shape", family="llama", fingerprint="0" * 64, layers=layers, hidden=576, heads=9,
        kv_heads=3, head_dim=64, ffn=1536, vocab=49_152, context=8192, rms_eps=1e-5,
        rope=RopeFacts(theta=100_000.0, dims=64), tied_output=True,
    )  # fmt: skip


def llama_1b(layers: int) -> ModelFacts:
    """Llama-3.2-1B's shape."""
    return ModelFacts(
        name="llama-3.2-1b shape", family="llama", fingerprint="0" * 64, layers=layers, hidden=2048, heads=32,
        kv_heads=8, head_dim=64, ffn=8192, vocab=128_256, context=8192, rms_eps=1e-5,
        rope=RopeFacts(theta=500_000.0, dims=64), tied_output=True,
    )  # fmt: skip


MODELS: Mapping[str, Callable[[int], ModelFacts]] = {
    "smollm2": smollm2,
    "llama-1b": llama_1b,
    "llama-8b": llama_3_8b,
}


def stage_of(facts: ModelFacts, layers: int, device: str, *, fuse: bool) -> Engine:
    """So many layers in the middle."""
    name, index = device.partition(":")[::2]
    span = LayerRange(1, 1 + layers)
    spec = StageSpec(facts, Epoch(HeadId(bytes(16)), 1), 1, 3, span, SLOTS, CONTEXT, 8, CHUNK)
    options = EngineOptions(device=name, device_index=int(index or 0), fuse=fuse)
    return load_engine(spec, RandomWeights(facts, "Q4_0"), options=options)


def step(engine: Engine, rows: Sequence[Row]) -> None:
    """One frame, its payload where it came."""
    engine.input_buffer(rows)
    engine.step(rows)


def fusion(names: Sequence[str], layers: Sequence[int], device: str, rounds: int) -> None:
    """Print a line for each model, number of layers and of rows."""
    print("\n| stage in the middle | rows | apart | fused | less | of the step |\n|---|---|---|---|---|---|")
    for name in names:
        for count in layers:
            facts = MODELS[name](ALL_LAYERS)
            engines = [stage_of(facts, count, device, fuse=fuse) for fuse in (False, True)]
            for batch in BATCHES:
                apart, fused = in_turns(engines, [Row(slot, 0, 1) for slot in range(batch)], rounds)
                gain = f"{apart - fused:.1f} µs | {(apart - fused) / apart:.1%}"
                print(f"| {name}, {count} layers | {batch} | {apart:.1f} µs | {fused:.1f} µs | {gain} |", flush=True)
            for engine in engines:
                engine.close()


def in_turns(engines: Sequence[Engine], rows: Sequence[Row], rounds: int) -> list[float]:
    """Median microseconds of each one's step."""
    times: list[list[float]] = [[] for _ in engines]
    for _ in range(max(2, rounds // BLOCK)):
        for engine, own in zip(engines, times, strict=True):
            step(engine, rows)
            own += [timed_us(lambda engine=engine: step(engine, rows)) for _ in range(BLOCK)]
    return [statistics.median(own) for own in times]


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["smollm2", "llama-1b"])
    parser.add_argument("--layers", nargs="+", type=int, default=[4, 15])
    given = parser.parse_args()
    kind, _, index = given.device.partition(":")
    if kind != "cuda":
        parser.error(f"--device {given.device}: copies are the engine's own on CUDA alone; a processor has none")
    print(f"{describe_machine()}; {card()}\n")
    copies(int(index or 0), given.rounds)
    loads(int(index or 0))
    fusion(given.models, given.layers, given.device, given.rounds)


if __name__ == "__main__":
    main()
