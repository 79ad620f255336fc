"""Times one model over several devices of this machine: as one pipeline of 1, 2, 4 … stages, and as replicas.

    python benchmarks/multi_gpu.py [--shape 8b 70b] [--devices all] [--streams 1 2 4 8 16 32 64] [--stages 1 2 4]
        [--prompt 4096] [--new 129] [--layers N] [--type Q4_0] [--repetitions 3] [--folder FOLDER] [--json FILE]

Writes a file of the published shape with random weights (`--folder` keeps it), starts `hyperlane worker --devices`, and
serves from it. Refuses with fewer than two GPUs; devices that are named are taken whatever they are: `--shape 135m
--devices cpu,cpu` is its form for processors, and `--shape tiny` tries the benchmark itself. Prints, for each setup,
medians of

- the first token after `--prompt` tokens, and its rate; tokens/s of each number of streams;
- efficiency at the most streams: tokens/s ÷ (devices × tokens/s of one device that has all layers);
- overhead of a hop; and the speed that the plan predicted beside what was achieved (one worker alone is not predicted).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu import card

from hyperlane.bench.machine import describe_machine
from hyperlane.bench.workload import Sample, Workload, run_workload
from hyperlane.config import Paths, ServeConfig
from hyperlane.core import Address, HeadStatus, TextGenerator
from hyperlane.errors import DoesNotFit, HyperlaneError, UsageError
from hyperlane.node import start_serving
from hyperlane.stage.devices import devices_of, gpus
from hyperlane.testing.program import Program
from hyperlane.testing.tiny_models import TinyModel, write_tiny_model

LLAMA = TinyModel(heads=32, kv_heads=8, vocab=128_256, context=131_072, embedding_type="Q8_0", distinct_rows=64)
SHAPES = {
    "8b": dataclasses.replace(LLAMA, layers=32, hidden=4096, ffn=14336),
    "70b": dataclasses.replace(LLAMA, layers=80, hidden=8192, heads=64, ffn=28672),
    "135m": dataclasses.replace(LLAMA, layers=30, hidden=576, heads=9, kv_heads=3, ffn=1536, vocab=49_152),
    "tiny": TinyModel(layers=8, context=2048),
}
"""Llama 3's published shapes, SmolLM2-135M's for processors, and one for trying this out."""

READY = re.compile(r"worker \S+ is ready at (\S+) \(process")
STREAM_PROMPT = 128


@dataclass(frozen=True, slots=True)
class Setup:
    """So many pipelines, each over so many devices."""

    pipelines: int
    stages: int

    @property
    def devices(self) -> int:
        """All of them."""
        return self.pipelines * self.stages

    def __str__(self) -> str:
        stages = f"{self.stages} stage{'s' * (self.stages > 1)}"
        return stages if self.pipelines == 1 else f"{self.pipelines} replicas of {stages}"


@dataclass(frozen=True, slots=True)
class Row:
    """What one setup did. Rates in tokens/s, by streams; `predicted` None: the plan said nothing. `why`: it did not."""

    setup: Setup
    rates: dict[int, float]
    first_s: float = 0.0
    prompt_rate: float = 0.0
    hop_us: float = 0.0
    predicted_one: float | None = None
    predicted_many: float | None = None
    why: str = ""


def setups(stages: Sequence[int], devices: int) -> list[Setup]:
    """Pipelines of each length that the devices allow, then all devices as replicas of the shorter ones."""
    lengths = sorted({count for count in stages if count <= devices})
    replicas = [Setup(devices // length, length) for length in lengths if length < devices and devices % length == 0]
    return [*(Setup(1, length) for length in lengths), *replicas]


@contextlib.contextmanager
def workers(devices: Sequence[str], home: Path) -> Iterator[list[Address]]:
    """The command that a user runs; where its workers are, in the order of the devices."""
    flags = ("--devices", ",".join(devices), "--listen", "127.0.0.1:0")
    with Program("worker", *flags, home=home) as program:
        program.wait_for(f"{len(devices)} of {len(devices)} devices are ready")
        lines = sorted(line for line in program.err if READY.search(line))
        yield [Address.parse(match[1]) for line in lines if (match := READY.search(line))]


class Bench:
    """One model over some of the workers."""

    def __init__(self, model: Path, places: Sequence[Address], home: Path, given: argparse.Namespace) -> None:
        self._model, self._places, self._given = model, places, given
        self._paths = Paths.under(home)

    def row(self, setup: Setup) -> Row:
        """All of one setup; a row that says why where it does not fit."""
        try:
            first_s, prompt_rate = self._prompt(setup)
            return self._streams(setup, first_s, prompt_rate)
        except DoesNotFit as error:
            return Row(setup, {}, why=str(error).splitlines()[0])

    def _prompt(self, setup: Setup) -> tuple[float, float]:
        with self._served(setup, slots=1, context=self._given.prompt + STREAM_PROMPT) as service:
            samples = self._samples(service, Workload(self._given.prompt, 1))
            return (
                statistics.median(sample.ttft_s for sample in samples),
                statistics.median(sample.prefill_rate for sample in samples),
            )

    def _streams(self, setup: Setup, first_s: float, prompt_rate: float) -> Row:
        most, prompt = max(self._given.streams), min(STREAM_PROMPT, self._given.prompt)
        slots = -(-most // setup.pipelines)
        with self._served(setup, slots=slots, context=prompt + self._given.new + 16) as service:
            works = {count: Workload(prompt, self._given.new, count) for count in self._given.streams}
            rates = {
                count: statistics.median(sample.decode_rate for sample in self._samples(service, work, primed=True))
                for count, work in works.items()
            }
            status = service.status()
        one, many = predicted(status)
        return Row(setup, rates, first_s, prompt_rate, status.hop_us, one, many)

    def _samples(self, service: TextGenerator, work: Workload, *, primed: bool = False) -> list[Sample]:
        run_workload(service, work, primed=primed)
        return [run_workload(service, work, seed, primed=primed) for seed in range(self._given.repetitions)]

    @contextlib.contextmanager
    def _served(self, setup: Setup, slots: int, context: int) -> Iterator[TextGenerator]:
        config = ServeConfig(
            model=str(self._model), workers=tuple(self._places[: setup.devices]), local_workers=0, use="all",
            slots=slots, context=context, prompt_chunk=min(512, self._given.prompt), replicas=setup.pipelines,
            optimize="throughput", paths=self._paths, replan=False,
        )  # fmt: skip
        serving = start_serving(config)
        try:
            stages = sorted(len(plan.stages) for plan in serving.service.status().plans)
            assert stages == [setup.stages] * setup.pipelines, f"the plan has stages {stages}, not {setup}"
            yield serving.service
        finally:
            serving.close()


def predicted(status: HeadStatus) -> tuple[float | None, float | None]:
    """Tokens/s of one stream and of all slots' streams, as the plans said."""
    said = [plan.prediction for plan in status.plans]
    known = [one for one in said if one is not None]
    if len(known) < len(said):
        return None, None
    return max(1 / one.token_s for one in known), sum(one.many_rate for one in known)


def efficiency(row: Row, rows: Sequence[Row]) -> float | None:
    """Tokens/s at the most streams, per device, of those of the row with fewest devices, which has all layers on each.

    That is one device wherever the model fits one.
    """
    able = [one for one in rows if one.rates]
    least = min(able, key=lambda one: one.setup.devices)
    if not row.rates:
        return None
    most = max(row.rates)
    return (row.rates[most] / row.setup.devices) / (least.rates[most] / least.setup.devices)


def table(rows: Sequence[Row], streams: Sequence[int]) -> str:
    """All rows of one shape."""
    head = [
        "setup",
        "first token",
        "prompt",
        *(f"{count} stream{'s' * (count > 1)}" for count in streams),
        "efficiency",
        "hop",
    ]
    head += ["predicted, achieved: one", f"{max(streams)} streams"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        if row.why:
            lines.append(f"| {row.setup} | {row.why} |" + " |" * (len(head) - 2))
            continue
        share = efficiency(row, rows)
        cells = [str(row.setup), f"{row.first_s:.2f} s", f"{row.prompt_rate:.0f}/s"]
        cells += [f"{row.rates[count]:.1f}" for count in streams]
        cells += [f"{share:.2f}" if share is not None else "-", f"{row.hop_us:.0f} µs"]
        cells += [_beside(row.predicted_one, row.rates.get(1)), _beside(row.predicted_many, row.rates[max(streams)])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _beside(said: float | None, did: float | None) -> str:
    return f"{said:.1f}, {did:.1f}" if said is not None and did is not None else "-"


def chosen(asked: str | None) -> tuple[str, ...]:
    """The devices to use.

    Raises:
        UsageError: there are fewer than two.

    """
    found = devices_of(asked.split(",")) if asked else gpus()
    if len(found) < 2:
        there = ", ".join(found) or "none that a GPU provider can use"
        raise UsageError(
            f"this benchmark needs two GPUs at least; here: {there}. To try it out without: --shape tiny --devices "
            "cpu,cpu --prompt 64 --streams 1 2"
        )
    return found


def measure(shape: str, devices: Sequence[str], folder: Path, given: argparse.Namespace) -> list[Row]:
    """All setups of one shape, each printed when it is done."""
    model = SHAPES[shape]
    model = dataclasses.replace(model, layers=given.layers or model.layers, type=given.type)
    path = folder / f"{shape}-{model.layers}-{model.type}.gguf"
    if not path.exists():
        write_tiny_model(path, model)
    print(f"\n{shape}: {model.layers} layers of {model.type}, hidden size {model.hidden}; prompt of {given.prompt}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as home, workers(devices, Path(home)) as places:
        bench = Bench(path, places, Path(home), given)
        for setup in setups(given.stages, len(devices)):
            rows.append(bench.row(setup))
            print(f"  {setup}: {rows[-1].why or rows[-1].rates}", file=sys.stderr, flush=True)
    print(table(rows, given.streams))
    return rows


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["8b", "70b"])
    parser.add_argument("--devices", help="as of `hyperlane worker`; every GPU by default")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--new", type=int, default=129, help="tokens of an answer")
    parser.add_argument("--layers", type=int, help="fewer than the shape has, where they do not fit")
    parser.add_argument("--type", default="Q4_0")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where model files are kept")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    try:
        devices = chosen(given.devices)
        print(f"{describe_machine()}; {card()}; devices {', '.join(devices)}")
        with tempfile.TemporaryDirectory() as scratch:
            found = {shape: measure(shape, devices, given.folder or Path(scratch), given) for shape in given.shape}
    except HyperlaneError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    if given.json:
        rows = {
            shape: [{**dataclasses.asdict(row), "efficiency": efficiency(row, rows)} for row in rows]
            for shape, rows in found.items()
        }
        given.json.write_text(json.dumps(rows, indent=2), "utf-8")


if __name__ == "__main__":
    main()
