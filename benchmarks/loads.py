"""What stays in a process that loads stages of a model again and again: memory in use, and what the allocator keeps.

    python benchmarks/loads.py [--model smollm2-135m] [--times 120] [--seed 1] [--docs PAGE]

One process loads and closes halves and two thirds of the model, in an order from the seed, as a worker does whose
cluster changes. "In use" is what the program has not freed: a leak would raise it with every load. "Private" is what
the process has of its own, hence also what glibc's allocator keeps of what was freed. Linux with glibc 2.33 or newer.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from hyperlane.bench.machine import describe_machine
from hyperlane.bench.pages import write_figures
from hyperlane.config import Paths, load
from hyperlane.core import Epoch, HeadId, LayerRange, ModelFacts, Precision, StageSpec
from hyperlane.models.download import pull
from hyperlane.models.source import facts_of, open_model
from hyperlane.stage.loading import load_engine
from hyperlane.store.ready_store import ReadyStore
from hyperlane.testing.chaos.audit import level

MIB = 1 << 20
SHARES = ((0, 1 / 2), (1 / 2, 1), (0, 2 / 3), (1 / 3, 1))
"""Of the layers, from and to: what a stage of two has, and where the boundary is elsewhere."""


_HEAP = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in _HEAP]


@dataclass(frozen=True, slots=True)
class Held:
    """MiB after a load was closed again."""

    private: float
    in_use: float
    kept: float


def main() -> None:
    """Load again and again; print what stays."""
    options = _options()
    path = Path(options.model) if Path(options.model).exists() else pull(options.model, load(Paths).models)
    rng = random.Random(options.seed)
    found: list[Held] = []
    with tempfile.TemporaryDirectory() as folder, open_model(path) as file:
        store, facts = ReadyStore(Path(folder)), facts_of(file)
        for number in range(options.times):
            engine = load_engine(_stage(facts, rng.choice(SHARES), number + 1), file, store)
            engine.close()
            del engine
            found.append(_held())
    title = f"{options.times} loads of {options.model}, seed {options.seed}; {describe_machine()}"
    text = "\n".join((title, *_table(found)))
    print(text)
    if options.docs:
        write_figures(options.docs, f"loads {options.model}", text)


def _stage(facts: ModelFacts, share: tuple[float, float], epoch: int) -> StageSpec:
    first, last = (round(facts.layers * edge) for edge in share)
    return StageSpec(
        model=facts,
        epoch=Epoch(HeadId(bytes(16)), epoch),
        index=int(first > 0),
        stages=2,
        layers=LayerRange(first, last),
        slots=4,
        context=512,
        threads=1,
        max_step_tokens=128,
        precision_in=Precision.RAW,
        precision_out=Precision.RAW,
    )


def _held() -> Held:
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Heap
    heap = mallinfo()
    own = level(psutil.Process()).memory
    return Held(own / MIB, (heap.uordblks + heap.hblkhd) / MIB, heap.fordblks / MIB)


def _table(found: list[Held]) -> list[str]:
    """A row for the first load, then for ever more: the least and the most since the row before."""
    rows = [f"{'loads':<12} {'in use':>18} {'kept by allocator':>18} {'private':>18}   MiB, least to most"]
    edges = [0, *sorted({edge for edge in (1, 5, 20, 60, len(found)) if edge <= len(found)})]
    for first, last in itertools.pairwise(edges):
        part = found[first:last]
        cells = [[getattr(one, name) for one in part] for name in ("in_use", "kept", "private")]
        spans = "".join(f" {f'{min(cell):.1f} to {max(cell):.1f}':>18}" for cell in cells)
        rows.append(f"{f'{first + 1} to {last}':<12}{spans}")
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--times", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--docs", type=Path, help="a page to write the table into, between its marks")
    return parser.parse_args()


if __name__ == "__main__":
    main()
