"""What links cost on a GPU: packing inside a stage's graph, and copies between the card and the host by their size.

    python benchmarks/gpu_links.py [--layers 8] [--device cuda:0] [--rounds 50]

A stage in the middle of Llama-3-8B's shape with random Q4_0 weights, its step with raw, int8 and int4 links; then
copies to the card and back with the wait for them, from page-locked and from other memory, as one and as two. Medians.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable

import numpy as np
from gpu import RandomWeights, card, llama_3_8b

from hyperlane.bench.machine import describe_machine
from hyperlane.core import Epoch, HeadId, LayerRange, Precision, Row, StageSpec
from hyperlane.stage.cuda import CudaMemory, load_runtime
from hyperlane.stage.engine import Engine
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import EngineOptions

SLOTS, CHUNK, CONTEXT, WHOLE = 32, 512, 1024, 32
SIZES = (512, 2 << 10, 8 << 10, 32 << 10, 128 << 10, 512 << 10, 2 << 20, 8 << 20)


def median_us(run: Callable[[], object], rounds: int) -> float:
    """Microseconds of one call."""
    run()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times)


def packing(layers: int, device: str, rounds: int) -> None:
    """Print a line for each precision."""
    facts, name, index = llama_3_8b(WHOLE), *device.partition(":")[::2]
    print("| link | one token | 32 rows | chunk of 512 |\n|---|---|---|---|")
    for precision in (Precision.RAW, Precision.INT8, Precision.INT4):
        spec = StageSpec(
            facts, Epoch(HeadId(bytes(16)), 1), 1, 3, LayerRange(8, 8 + layers), SLOTS, CONTEXT, 8, CHUNK,
            precision_in=precision, precision_out=precision,
        )  # fmt: skip
        options = EngineOptions(device=name, device_index=int(index or 0))
        engine = load_engine(spec, RandomWeights(facts, "Q4_0"), options=options)
        found = []
        for rows in ([Row(0, 0, 1)], [Row(slot, 0, 1) for slot in range(SLOTS)], [Row(0, 0, CHUNK)]):

            def step(engine: Engine = engine, rows: list[Row] = rows) -> None:
                engine.input_buffer(rows)
                engine.step(rows)

            found.append(f"{median_us(step, rounds):.0f} µs")
        engine.close()
        print(f"| {precision} | {' | '.join(found)} |", flush=True)


def copies(index: int, rounds: int) -> None:
    """Print a line for each size."""
    memory, runtime = CudaMemory(index), load_runtime()
    print("| bytes | to the card | as two | back | from memory that is not page-locked |\n|---|---|---|---|---|")
    for size in SIZES:
        block, plain = memory.array((size,), np.uint8), np.ones(size, np.uint8)
        half, place = size // 2, ctypes.c_void_p(memory.address(block))

        def one(block: np.ndarray = block) -> None:
            memory.push(block)
            memory.wait()

        def two(block: np.ndarray = block, half: int = half) -> None:
            memory.push(block[:half])
            memory.push(block[half:])
            memory.wait()

        def back(block: np.ndarray = block) -> None:
            memory.pull(block)
            memory.wait()

        def pageable(plain: np.ndarray = plain, place: ctypes.c_void_p = place) -> None:
            runtime.cudaMemcpy(place, ctypes.c_void_p(plain.ctypes.data), ctypes.c_size_t(plain.nbytes), 1)

        found = " | ".join(f"{median_us(run, 4 * rounds):.1f} µs" for run in (one, two, back, pageable))
        print(f"| {size:,} | {found} |", flush=True)
    memory.close()


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=50)
    given = parser.parse_args()
    print(f"{describe_machine()}; {card()}; {given.layers} layers")
    packing(given.layers, given.device, given.rounds)
    if given.device.startswith("cuda"):
        copies(int(given.device.partition(":")[2] or 0), given.rounds)


if __name__ == "__main__":
    main()
