"""What keeps packed residual streams accurate: ways to round them, tried between stages of a real model.

    python benchmarks/wire_study.py [MODEL] [--cuts 10 20] [--windows 4] [--skip 0]

The stages compute in float32, so that nothing but the rounding differs, and exchange raw values, which NumPy rounds
between them. `KL`: mean divergence of the predictions from those of raw links, in per cent of a nat: it shows with
1,000 tokens what perplexity shows with 20,000. `first exact`: the text's first token is not rounded at all.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hyperlane.bench.machine import describe_machine
from hyperlane.config import Paths, load
from hyperlane.core import Epoch, HeadId, LayerRange, Precision, Row, StageSpec
from hyperlane.graph import wire_points
from hyperlane.models.download import pull
from hyperlane.models.facts import read_facts
from hyperlane.models.gguf_file import GgufFile
from hyperlane.stage.engine import Engine
from hyperlane.stage.link_gains import link_gains
from hyperlane.stage.loading import load_engine
from hyperlane.stage.options import REFERENCE, BlockOffsets
from hyperlane.stage.weights import read_unit

MODELS = {"smollm2": "smollm2-135m", "gemma3": "gemma3-270m"}
DATA = Path(__file__).parents[1] / "tests" / "data"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to round rows of values.

    `group`: values that share a scale of `scale_bits`. `levels`: how many; evenly spaced from the largest value where
    `even`, else those of least error for a normal distribution by the root mean square, or by the largest value where
    `by_largest`. `offset`: of each group, too. `rotated`: by Hadamard's matrix of order 64. `apart`: of each row the so
    many largest values are kept, in 32 bits each with their place; `apart_of_block`: one of each 64, in 16 bits.
    """

    name: str
    group: int = 64
    levels: int = 16
    even: bool = False
    offset: bool = False
    rotated: bool = True
    apart: int = 0
    apart_of_block: bool = False
    by_largest: bool = False
    scale_bits: int = 8
    first_exact: bool = False
    points: bool = False
    weighed: bool = False

    def bits(self, hidden: int) -> float:
        """Of a value."""
        scales = self.scale_bits * (2 if self.offset else 1) / self.group
        levels = wire_points.NUMBERS ** (1 / 4) if self.points else self.levels
        return math.log2(levels) + scales + 32 * self.apart / hidden + 16 * self.apart_of_block / 64

    def round(self, values: Floats, gains: Floats) -> Floats:
        """Rows [tokens, hidden] as they arrive; `gains`: of channels."""
        return self._rounded_rows(values * gains) / gains if self.weighed else self._rounded_rows(values)

    def _rounded_rows(self, values: Floats) -> Floats:
        kept = self._kept(values)
        rest = (values - kept).reshape(len(values), -1, 64)
        turned = rest @ hadamard() if self.rotated else rest
        rounded = self._rounded(turned.reshape(len(values), -1, self.group)).reshape(rest.shape)
        back = (rounded @ hadamard() if self.rotated else rounded).reshape(values.shape) + kept
        if self.first_exact:
            back[0] = values[0]
        return back

    def _kept(self, values: Floats) -> Floats:
        kept = np.zeros_like(values)
        count, parts = (1, values.reshape(-1, 64)) if self.apart_of_block else (self.apart, values)
        if count:
            places = np.argpartition(-np.abs(parts), count - 1, axis=-1)[:, :count]
            np.put_along_axis(kept.reshape(parts.shape), places, np.take_along_axis(parts, places, -1), -1)
        return kept

    def _rounded(self, groups: Floats) -> Floats:
        if self.points:
            return nearest_points(groups)
        if self.offset:
            low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
            step = np.maximum((high - low) / (self.levels - 1), 1e-30)
            return np.round((groups - low) / step) * step + low
        largest = np.maximum(np.abs(groups).max(-1, keepdims=True), 1e-30)
        if self.even:
            most = self.levels // 2 - 1
            return np.round(groups * most / largest) * largest / most
        size = largest if self.by_largest else np.sqrt(np.square(groups).mean(-1, keepdims=True)) + 1e-30
        levels = normal_levels(self.levels, by_largest=self.by_largest)
        return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, groups / size)] * size


WAYS = (
    Way("int8, groups of 32", group=32, levels=256, even=True, rotated=False),
    Way("int8, rotated", levels=256, even=True),
    Way("int4, groups of 32", group=32, even=True, rotated=False, scale_bits=16),
    Way("asymmetric, groups of 32", group=32, offset=True, rotated=False, scale_bits=16),
    Way("rotated, groups of 32", group=32, even=True, scale_bits=16),
    Way("rotated, normal levels", scale_bits=16),
    Way("the same, 8 apart", apart=8),
    Way("8 apart, not rotated", apart=8, rotated=False),
    Way("1 of 64 apart", apart_of_block=True),
    Way("1 of 64 apart, 20 levels", levels=20, apart_of_block=True),
    Way("the same, first exact", levels=20, apart_of_block=True, first_exact=True),
    Way("4 apart, 22 levels", levels=22, apart=4),
    Way("1 of 64 apart, 20 by largest", levels=20, apart_of_block=True, by_largest=True),
    Way("1 of 64 apart, 21 by largest", levels=21, apart_of_block=True, by_largest=True),
    Way("the same, weighed", levels=21, apart_of_block=True, by_largest=True, weighed=True),
    Way("1 of 64 apart, points", apart_of_block=True, points=True),
    Way("the same, weighed (used)", apart_of_block=True, points=True, weighed=True),
    Way("int8, rotated, weighed (used)", levels=256, even=True, weighed=True),
)


def nearest_points(groups: Floats) -> Floats:
    """Four values at a time as points, by the better of two scales an eighth apart."""
    quads = groups.reshape(*groups.shape[:-1], -1, 4)
    largest = np.sqrt(np.square(quads).sum(-1).max(-1))[..., None, None]
    found = [_to_points(quads, largest * size) for size in (1.06, 0.94)]
    errors = [np.square(one - quads).sum((-1, -2), keepdims=True) for one in found]
    return np.where(errors[1] < errors[0], found[1], found[0]).reshape(groups.shape)


def _to_points(quads: Floats, scale: Floats) -> Floats:
    ratios = quads / np.maximum(scale, 1e-30)
    bent = ratios * wire_points.SPREAD / (1 + wire_points.BEND * np.square(ratios).sum(-1, keepdims=True))
    near = np.clip(bent, 0.01 - wire_points.REACH, wire_points.REACH - 0.01)
    whole = np.round(near)
    is_half = np.abs(near - whole).sum(-1, keepdims=True) > 1
    places = np.where(is_half, np.floor(near), whole) @ wire_points.cell_strides().astype(float)
    places += np.where(is_half, wire_points.HALF_CELLS, wire_points.WHOLE_CELLS)
    numbers = wire_points.numbers_of_cells()[places[..., 0].astype(int)]
    return wire_points.levels()[numbers.astype(int)] * scale


@functools.cache
def hadamard() -> Floats:
    """Sylvester's matrix of order 64 over 8."""
    made = np.ones((1, 1))
    while len(made) < 64:
        made = np.block([[made, made], [made, -made]])
    return made / 8


@functools.cache
def normal_levels(count: int, *, by_largest: bool) -> Floats:
    """Levels of least squared error for blocks of 64 normally distributed values, by their measure (Lloyd's method)."""
    blocks = np.random.default_rng(0).standard_normal((8000, 64))
    largest = np.abs(blocks).max(-1, keepdims=True)
    size = largest if by_largest else np.sqrt(np.square(blocks).mean(-1, keepdims=True))
    values, weights = (blocks / size).ravel(), np.broadcast_to(np.square(size), blocks.shape).ravel()
    levels = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(200):
        nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
        levels = np.bincount(nearest, weights * values, count) / np.bincount(nearest, weights, count)
        levels = (levels - levels[::-1]) / 2
    return levels


class Bench:
    """A model in stages, and what its first stage makes of the text."""

    def __init__(self, model: str, cuts: Sequence[int], windows: int) -> None:
        golden = np.load(DATA / f"golden_{model}.npz")
        self._size, bos = int(golden["window"]), int(golden["bos"])
        self._texts = [golden["text"][at * self._size : (at + 1) * self._size].astype("<i4") for at in range(windows)]
        for text in self._texts:
            text[0] = text[0] if bos < 0 else bos
        self._rows = (Row(0, 0, self._size, tuple(range(self._size // 2, self._size - 1)), whole_logits=True),)
        with GgufFile(pull(MODELS[model], load(Paths).models)) as file:
            facts = read_facts(file)
            bounds = [0, *cuts, facts.layers]
            epoch = Epoch(HeadId(bytes(16)), 1)
            specs = [
                StageSpec(
                    facts, epoch, at, len(cuts) + 1, LayerRange(*bounds[at : at + 2]), 1, self._size, 2, self._size
                )
                for at in range(len(cuts) + 1)
            ]
            self._engines = [load_engine(spec, file, options=REFERENCE) for spec in specs]
            self._gains = [_gains(file, spec) for spec in specs[1:]]
        self.hidden = facts.hidden
        self._first = [_run(self._engines[0], self._rows, text.tobytes()) for text in self._texts]
        self._raw = [self._predictions(first, lambda values, _: values) for first in self._first]

    def compare(self, way: Way) -> tuple[float, float, float]:
        """Per cent of perplexity, its standard error, and KL, against raw links."""
        more: list[Floats] = []
        divergence = []
        for text, first, raw in zip(self._texts, self._first, self._raw, strict=True):
            found = self._predictions(first, way.round)
            said = text[self._size // 2 + 1 :]
            at = np.arange(len(said))
            more.append(raw[at, said] - found[at, said])
            divergence.append(float((np.exp(raw) * (raw - found)).sum(-1).mean()))
        all_more = np.concatenate(more)
        error = all_more.std() / math.sqrt(len(all_more))
        return 100 * math.expm1(all_more.mean()), 100 * error, 100 * statistics.mean(divergence)

    def _predictions(self, payload: bytes, between: Callable[[Floats, Floats], Floats]) -> Floats:
        """Log-probabilities of the second half of a window."""
        for engine, gains in zip(self._engines[1:], self._gains, strict=True):
            values = np.frombuffer(payload, np.float32).reshape(self._size, -1).astype(np.float64)
            payload = _run(engine, self._rows, between(values, gains).astype(np.float32).tobytes())
        logits = np.frombuffer(payload, np.float32).reshape(len(self._rows[0].want), -1).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _gains(file: GgufFile, spec: StageSpec) -> Floats:
    """Of the link into a stage."""
    packed = replace(spec, precision_in=Precision.INT4)
    found = link_gains(packed, lambda unit: list(read_unit(file, unit, BlockOffsets.WIDE).arrays.values())).received
    assert found is not None
    return found.astype(np.float64)


def _run(engine: Engine, rows: Sequence[Row], payload: bytes) -> bytes:
    engine.input_buffer(rows)[:] = payload
    return b"".join(engine.step(rows))


def lines(bench: Bench, skip: int) -> Iterator[str]:
    """A line for each way after the first `skip`."""
    for way in WAYS[skip:]:
        percent, error, divergence = bench.compare(way)
        yield f"{way.name:36} {way.bits(bench.hidden):6.3f} {percent:+6.2f} % ± {error:.2f} {divergence:8.3f}"


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=MODELS, default="smollm2")
    parser.add_argument("--cuts", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--skip", type=int, default=0, help="how many ways to leave out, from the first")
    given = parser.parse_args()
    bench = Bench(given.model, given.cuts, given.windows)
    print(f"{given.model}, boundaries before {given.cuts}, {given.windows} windows; {describe_machine()}")
    print(f"{'way':36} {'bits':>6} {'perplexity':>15} {'KL':>8}")
    for line in lines(bench, given.skip):
        print(line, flush=True)


if __name__ == "__main__":
    main()
