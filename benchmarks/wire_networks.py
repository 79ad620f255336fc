"""Times a pipeline of two stages over networks of given speeds, its link raw, int8 and int4.

    python benchmarks/wire_networks.py [MODEL] [--programmed] [--rounds 3] [--prompt 512] [--answer 32]

Both stages run in this process on one thread each; every link, also the head's two, passes a proxy that shapes it. The
three precisions take turns. Prints medians: seconds to the first token of a prompt in chunks of 64, and tokens per
second of one stream after it. With `--programmed` the stages only wait, as long as a device might take: 1.5 ms for a
step and 0.15 ms for each of its tokens; their hidden states are 4,096 float32 values. What is left is the network's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hyperlane.bench.machine import describe_machine
from hyperlane.config import Paths, load
from hyperlane.core import Address, ModelFacts, Plan, Precision, Row, StageSpec
from hyperlane.models.download import pull
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.engine import Engine
from hyperlane.stage.host import StageHost
from hyperlane.stage.loading import load_engine
from hyperlane.stage.orders import LoadOrder, StageKey, WeightSources
from hyperlane.stage.terms import hello_to
from hyperlane.store.ready_store import ReadyStore
from hyperlane.testing.fake_engine import FakeCost, FakeEngine
from hyperlane.testing.shaper import Cable, Shaper
from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs
from hyperlane.wire import dial
from hyperlane.wire.candidates import Candidates, split
from hyperlane.wire.frame import Frame, Kind, Role
from hyperlane.wire.listener import DataListener
from hyperlane.wire.ring import TcpRing

NETWORKS = {
    "100 Mbit/s": Cable(delay_ms=0.15, rate_mbit=100),
    "1 Gbit/s": Cable(delay_ms=0.1, rate_mbit=1000),
    "2.5 Gbit/s": Cable(delay_ms=0.1, rate_mbit=2500),
    "Wi-Fi-like": Cable(delay_ms=5.0, jitter_ms=3.0, rate_mbit=200),
}
STAGES, CHUNK, SECONDS = 2, 64, 120.0
SHOWN = (Precision.RAW, Precision.INT8, Precision.INT4)

MakeEngine = Callable[[StageSpec], Engine]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds to the first token, and tokens per second after it."""

    first_s: float
    rate: float


@contextmanager
def shaped_ring(plan: Plan, make: MakeEngine, cable: Cable) -> Iterator[TcpRing]:
    """The head's ends of a ring through the plan's stages, every link of it shaped."""
    specs = toy_specs(plan, max_step_tokens=CHUNK)
    with ExitStack() as parts:
        hosts, doors = [], []
        for spec in specs:
            host = StageHost(
                f"stage-{spec.index}", lambda order, _: make(order.spec), _dial, free_memory=lambda: 1, memory_limit=1
            )
            port = DataListener(Address("127.0.0.1", 0), host.admit, host.deliver)
            parts.callback(host.close)
            parts.callback(port.close)
            hosts.append(host)
            doors.append(parts.enter_context(Shaper(port.address, cable)).address)
        stages = [
            host.load(LoadOrder(spec, WeightSources(), 0, 0, 0), _silent)
            for host, spec in zip(hosts, specs, strict=True)
        ]
        for host, spec, door in zip(hosts, specs, doors[1:], strict=False):
            host.connect(StageKey(spec.epoch, spec.index), door)
        element = stages[0].engine.element
        ring = TcpRing.connect(
            doors[0], hello_to(specs[0], Role.UPSTREAM, element),
            doors[-1], hello_to(specs[-1], Role.DOWNSTREAM, element), SECONDS,
        )  # fmt: skip
        parts.callback(ring.close)
        yield ring


def measure(ring: TcpRing, facts: ModelFacts, prompt: int, answer: int, step: int) -> Times:
    """One prompt and its answer."""
    tokens = np.random.default_rng(0).integers(0, facts.vocab, prompt, np.int32)
    began = time.perf_counter()
    for start in range(0, prompt, CHUNK):
        part = tokens[start : start + CHUNK]
        wanted = (len(part) - 1,) if start + len(part) == prompt else ()
        _send(ring, step, Row(0, start, len(part), wanted), part)
        step += 1
    token = _answers(ring, -(-prompt // CHUNK), facts)
    first = time.perf_counter()
    for position in range(prompt, prompt + answer):
        _send(ring, step, Row(0, position, 1, (0,)), np.array([token], np.int32))
        token = _answers(ring, 1, facts)
        step += 1
    return Times(first - began, answer / (time.perf_counter() - first))


def _send(ring: TcpRing, step: int, row: Row, tokens: np.ndarray) -> None:
    ring.send(Frame(Kind.TOKENS, 1, step, (row,), (tokens.tobytes(),)))


def _answers(ring: TcpRing, count: int, facts: ModelFacts) -> int:
    """The best token of the last of so many frames."""
    frames: list[Frame] = []
    while len(frames) < count:
        frames += ring.poll(SECONDS)
    ((found,),) = split(frames[-1].rows, frames[-1].payload[0], facts.vocab)
    assert isinstance(found, Candidates)
    return int(found.ids[0])


def _dial(address: Address, hello: object) -> object:
    return dial.connect(address, hello, SECONDS)  # type: ignore[arg-type]


def _silent(_: object) -> None:
    """A load's progress that nobody looks at."""


def _median(rounds: Sequence[Times]) -> Times:
    return Times(statistics.median(one.first_s for one in rounds), statistics.median(one.rate for one in rounds))


def _run(facts: ModelFacts, make: MakeEngine, given: argparse.Namespace) -> None:
    plan = toy_plan(facts, stages=STAGES, slots=1)
    plan = replace(plan, context=given.prompt + given.answer)
    print(f"{'network':12} {'link':5} {'first token s':>14} {'tokens/s':>10}")
    for name, cable in NETWORKS.items():
        with ExitStack() as parts:
            plans = [replace(plan, precisions=(Precision.RAW, precision, Precision.RAW)) for precision in SHOWN]
            rings = [parts.enter_context(shaped_ring(packed, make, cable)) for packed in plans]
            rounds = [
                [measure(ring, facts, given.prompt, given.answer, 1 + turn * plan.context) for ring in rings]
                for turn in range(given.rounds + 1)
            ]
        for precision, times in zip(SHOWN, zip(*rounds[1:], strict=True), strict=True):  # the first one warms up
            found = _median(times)
            print(f"{name:12} {precision:5} {found.first_s:14.3f} {found.rate:10.1f}", flush=True)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--programmed", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=32)
    given = parser.parse_args()
    print(describe_machine())
    if given.programmed:
        _run(
            toy_facts(hidden=4096, context=8192),
            lambda spec: FakeEngine(spec, cost=FakeCost(1.5e-3, 0, 0.15e-3)),
            given,
        )
        return
    with tempfile.TemporaryDirectory() as folder, GgufFile(pull(given.model, load(Paths).models)) as file:
        store = ReadyStore(Path(folder))
        _run(read_facts(file), lambda spec: load_engine(spec, file, store), given)


if __name__ == "__main__":
    main()
