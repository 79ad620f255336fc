"""Memory that a plan counts for a stage on a card, beside what the driver says: Llama-3-8B's shape, random weights.

    python benchmarks/gpu_memory.py [--layers 8 32] [--slots 1 32] [--context 1088] [--types Q4_0 Q4_K]
        [--device cuda:0] [--json FILE]

Each combination is a process of its own: what is free before the stage is loaded (the context and what a worker
prepares are there already), after its weights, its sessions, its entries and buffers, its first steps; and after
prompts of the longest step and decode steps of 1, 2, 3 … all slots, with as many entries before them as fit.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from gpu import RandomWeights, card, llama_3_8b

from hyperlane.bench.machine import describe_machine
from hyperlane.cluster.cost import stage_cost
from hyperlane.cluster.placement import ProportionalPlanner
from hyperlane.config import ServeConfig, load
from hyperlane.core import Address, ElementType, Epoch, HeadId, LayerRange, Row, StagePlan, StageSpec, WorkerFacts
from hyperlane.stage.cuda import device_memory
from hyperlane.stage.engine import Engine
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import EngineOptions

MIB = 1 << 20
PARTS = ("weights", "sessions", "entries and buffers", "first steps", "later steps")
NOWHERE = Address("127.0.0.1", 1)


@dataclass(frozen=True, slots=True)
class Case:
    """One stage."""

    layers: int
    slots: int
    context: int
    kind: str
    device: int

    @property
    def text(self) -> str:
        """For a line of the table."""
        return f"{self.layers} layers {self.kind}, {self.slots} x {self.context}"


@dataclass(frozen=True, slots=True)
class Found:
    """Bytes: what was planned for weights, entries and the rest; and what each part took of the card, in `PARTS`."""

    weights: int
    kv: int
    workspace: int
    free: int
    taken: dict[str, int]

    @property
    def planned(self) -> int:
        """All that was counted."""
        return self.weights + self.kv + self.workspace

    @property
    def real(self) -> int:
        """All that was taken."""
        return sum(self.taken.values())


class Rooms(logging.Handler):
    """Collects what the engine says is free while it is made."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.free: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what a line about memory says."""
        if record.msg.startswith("memory after") and isinstance(record.args, tuple):
            self.free[str(record.args[0])] = int(str(record.args[1]))


def planned(case: Case, step_tokens: int, free: int, total: int) -> StagePlan:
    """The one stage of the model on a worker with this device."""
    facts = llama_3_8b(case.layers)
    worker = WorkerFacts(
        "card", NOWHERE, NOWHERE, f"cuda:{case.device}", "CUDAExecutionProvider", 1, total, free, ElementType.F16,
        "0", 0, "0",
    )  # fmt: skip
    cost = stage_cost(facts, RandomWeights(facts, case.kind), case.slots, case.context, step_tokens)
    return ProportionalPlanner().plan(facts, [worker], cost, case.slots, case.context).stages[0]


def steps(engine: Engine, case: Case, chunk: int, vocab: int) -> None:
    """Prompts to the end of each slot but for some entries, then decode steps of every number of slots."""
    depth = case.context - case.slots - 8
    for slot in range(case.slots):
        for start in range(0, depth, chunk):
            step(engine, [Row(slot, start, min(chunk, depth - start), (min(chunk, depth - start) - 1,))], vocab)
    for count in range(1, case.slots + 1):
        step(engine, [Row(slot, depth + count - 1, 1, (0,)) for slot in range(count)], vocab)
        for slot in range(count, case.slots):  # every slot stays as long as the others
            step(engine, [Row(slot, depth + count - 1, 1, (0,))], vocab)


def step(engine: Engine, rows: list[Row], vocab: int) -> None:
    """One frame of token ids."""
    count = sum(row.count for row in rows)
    engine.input_buffer(rows)[:] = (np.arange(count, dtype=np.int32) % vocab).tobytes()
    engine.step(rows)


def measure(case: Case) -> Found:
    """Load the stage, use it, and look at the card's memory meanwhile."""
    from hyperlane.stage.onnx_sessions import prepare

    options, facts = EngineOptions(device="cuda", device_index=case.device), llama_3_8b(case.layers)
    chunk = load(ServeConfig, model="x", slots=case.slots, context=case.context).step_tokens
    prepare(options)
    free, total = device_memory(case.device)
    plan = planned(case, chunk, free, total)
    rooms, log = Rooms(), logging.getLogger("hyperlane.stage.onnx_sessions")
    log.setLevel(logging.DEBUG)
    log.addHandler(rooms)
    epoch, layers = Epoch(HeadId(bytes(16)), 1), LayerRange(0, case.layers)
    spec = StageSpec(facts, epoch, 0, 1, layers, case.slots, case.context, os.cpu_count() or 1, chunk)
    engine = load_engine(spec, RandomWeights(facts, case.kind), options=options)
    steps(engine, case, chunk, facts.vocab)
    rooms.free["later steps"] = device_memory(case.device)[0]
    engine.close()
    taken, before = {}, free
    for part in PARTS:
        if part in rooms.free:
            taken[part], before = before - rooms.free[part], rooms.free[part]
    return Found(plan.weight_bytes, plan.kv_bytes, plan.workspace_bytes, free, taken)


def apart(case: Case) -> Found:
    """`measure` in a process of its own."""
    words = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{case.text}: {ran.stderr[-2000:]}")
    return Found(**json.loads(ran.stdout.splitlines()[-1]))


def line(case: Case, found: Found) -> str:
    """One row of the table, in MiB."""
    counted = (found.weights, found.kv, found.workspace, found.planned)
    taken = [found.taken.get(part, 0) for part in PARTS]
    cells = [case.text, *(f"{count / MIB:,.0f}" for count in (*counted, *taken, found.real))]
    return f"| {' | '.join(cells)} | {found.real / found.planned:.3f} |"


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--context", type=int, nargs="+", default=[1088])
    parser.add_argument("--types", nargs="+", default=["Q4_0"])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(asdict(measure(Case(**json.loads(given.case))))))
        return
    index = int(given.device.partition(":")[2] or 0)
    cases = [
        Case(layers, slots, context, kind, index)
        for kind in given.types
        for layers in given.layers
        for context in given.context
        for slots in given.slots
    ]
    print(f"{describe_machine()}; {card()}\n")
    heads = ("MiB", "planned weights", "KV", "workspace", "in all", *PARTS, "in all", "real ÷ planned")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    results = []
    for case in cases:
        found = apart(case)
        results.append({"case": asdict(case), "found": asdict(found)})
        print(line(case, found), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2), "utf-8")


if __name__ == "__main__":
    main()
