"""What packing inside a stage's graph costs on a GPU. Copies between card and host: `transfers.py`.

    python benchmarks/gpu_links.py [--layers 8] [--device cuda:0] [--rounds 50]

A stage in the middle of Llama-3-8B's shape with random Q4_0 weights, its step with raw, int8 and int4 links. Medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from gpu import RandomWeights, card, llama_3_8b

from hyperlane.bench.machine import describe_machine
from hyperlane.core import Epoch, HeadId, LayerRange, Precision, Row, StageSpec
from hyperlane.stage.engine import Engine
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import EngineOptions

SLOTS, CHUNK, CONTEXT, WHOLE = 32, 512, 1024, 32


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


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=50)
    given = parser.parse_args()
    print(f"{describe_machine()}; {card()}; {given.layers} layers")
    packing(given.layers, given.device, given.rounds)


if __name__ == "__main__":
    main()
