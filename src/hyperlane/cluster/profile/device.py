"""Measuring one device: stages of a few layers of a model's shape, loaded with made-up weights and stepped.

`docs/planning.md` says what is subtracted from what. Knows no RPC, no cache and no engine in particular.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from hyperlane.cluster.planner.curve import Curve
from hyperlane.cluster.profile.shape import DeviceProfile, ProfileShape
from hyperlane.cluster.profile.steps import LEAST, ROUNDS, Step, StepTimer
from hyperlane.core import PROMPT_CHUNK, Epoch, HeadId, LayerRange, ModelFacts, StageSpec
from hyperlane.errors import LoadFailed
from hyperlane.models.synthetic import SyntheticSource
from hyperlane.models.weights import TensorSource
from hyperlane.stage.engine import Engine
from hyperlane.stage.orders import LoadProgress

BUDGET_S = 3.0
"""What timing the large stage may take, estimated from a small one: on slow devices it has fewer layers."""

LINEAR = 0.85
"""Where twice the tokens cost more than twice this, a larger chunk costs in proportion: it need not be measured."""

RUNS = 1 + ROUNDS * LEAST
"""Of each step, at least."""

SWEEP_BYTES = 1 << 26
"""Read before each step: it must not find its weights in the processor's cache, as it would not in a whole stage."""

TELLING_BYTES = 24 << 20
"""What a process takes goes up and down by a few MiB: less than this says nothing of its weights."""

MATRIX_VALUES = 1 << 26
"""A larger projection is measured with fewer words, and counted up."""

FEW_WORDS = 256
"""Of the vocabulary where nothing is projected: looking a word up takes as long among few."""

ARENA_BYTES = 1 << 30
_KV_BYTES = 4  # keys and values, two bytes each
PHASE = "measuring"

Build = Callable[[StageSpec, TensorSource], Engine]


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured: how engines are built and with how many threads, and bytes that are taken on the device.

    `taken` counts what this process has there now; `room`: bytes that the samples may take; two layers are loaded even
    if they take more. `others_s`: seconds that other programs have computed on this machine so far, of all its cores
    together.
    """

    build: Build
    threads: int
    taken: Callable[[], int]
    room: int
    others_s: Callable[[], float] = lambda: 0.0


def measure_device(shape: ProfileShape, bench: Bench, progress: Callable[[LoadProgress], None]) -> DeviceProfile:
    """Measure everything; takes seconds. What `progress` raises ends it, with nothing left behind.

    Raises:
        HyperlaneError: the engine cannot compute such layers; the message has why.

    """
    return _Measurement(shape, bench, progress).profile()


@dataclass(frozen=True, slots=True)
class _Timed:
    """A stage of some layers: seconds of decode steps by rows and of chunks by tokens, and the bytes that it takes."""

    layers: int
    decode: dict[int, float]
    chunk: dict[int, float]
    taken: int

    def more(self, other: _Timed) -> tuple[dict[int, float], dict[int, float]]:
        """Seconds beyond another stage's, of the same steps."""
        return (
            {rows: max(0.0, seconds - other.decode[rows]) for rows, seconds in self.decode.items()},
            {tokens: max(0.0, seconds - other.chunk[tokens]) for tokens, seconds in self.chunk.items()},
        )


class _Measurement:
    def __init__(self, shape: ProfileShape, bench: Bench, progress: Callable[[LoadProgress], None]) -> None:
        self._shape = shape
        self._bench = bench
        self._progress = progress
        self._process_bytes = bench.taken()
        self._sweep = _Sweep()
        self._done = 0
        self._entries = max(1, shape.kv_entries, shape.prompt_entries)

    def profile(self) -> DeviceProfile:
        usual = [size for size in self._shape.chunks if size <= PROMPT_CHUNK]
        front = self._timed(1, (1,), usual[-1:], first=True)
        one = self._timed(1, self._shape.rows, usual[-2:])
        chunks = self._telling(one)
        many = self._timed(self._affordable(one, chunks), self._shape.rows, chunks)
        embed = front.more(one)
        project = self._timed(1, self._shape.rows, (), last=True).more(one)
        layer_s = (many.decode[1] - one.decode[1]) / (many.layers - 1)
        step_s = max(0.0, one.decode[1] - layer_s)
        words = self._shape.model.vocab / self._vocab
        weights = many.taken - one.taken  # what the runtime takes once was there before both
        return DeviceProfile(
            layer_decode=_per_layer(many.decode, step_s, many.layers),
            layer_prefill=_per_layer(many.chunk, step_s, many.layers),
            embed=_curve({1: embed[0][1], **embed[1]}),
            project=_curve({rows: words * seconds for rows, seconds in project[0].items()}),
            step_s=step_s,
            layer_bytes=weights // (many.layers - 1) if weights >= TELLING_BYTES else 0,
            process_bytes=self._process_bytes,
            measured_s=int(time.time()),
        )

    def _telling(self, one: _Timed) -> tuple[int, ...]:
        """The chunks to measure: large ones where these cost less than in proportion, and do not take too long."""
        few, usual = min(one.chunk), max(one.chunk)
        token_s = one.chunk[usual] / usual
        is_linear = usual > few and token_s >= LINEAR * one.chunk[few] / few
        return tuple(
            size
            for size in self._shape.chunks
            if size <= usual or (not is_linear and RUNS * size * token_s <= BUDGET_S)
        )

    def _affordable(self, one: _Timed, chunks: Sequence[int]) -> int:
        """Layers of the large stage: as many as asked for, unless their memory or the time is too little."""
        shape, chunk = self._shape, max(one.chunk)
        tokens = self._entries + RUNS * sum(chunks)
        layer_s = tokens / chunk * one.chunk[chunk] + RUNS * sum(one.decode.values())
        room = self._bench.room // max(1, one.taken)
        return max(2, min(len(shape.layers), int(BUDGET_S / layer_s), room))

    def _timed(
        self, layers: int, rows: Sequence[int], chunks: Sequence[int], *, first: bool = False, last: bool = False
    ) -> _Timed:
        """A stage of the first sample layers is loaded, filled, timed, and gone."""
        shape = self._shape
        decode = {size: Step(size, 1, shape.kv_entries, last) for size in rows}
        chunk = {size: Step(1, size, max(1, shape.prompt_entries)) for size in chunks}  # at 0 a slot begins anew
        with self._stage(layers, first=first, last=last) as (timer, taken):
            seconds = timer.seconds((*decode.values(), *chunk.values()))
            return _Timed(
                layers,
                {size: seconds[step] for size, step in decode.items()},
                {size: seconds[step] for size, step in chunk.items()},
                taken,
            )

    def _tell(self) -> None:
        self._progress(LoadProgress(PHASE, min(self._done, self._total), self._total))
        self._done += 1

    @property
    def _total(self) -> int:
        return (1 + ROUNDS) * (3 * len(self._shape.rows) + len(self._shape.chunks) + 3)

    # --- stages ----------------------------------------------------------------------------------------------

    @contextmanager
    def _stage(self, layers: int, *, first: bool, last: bool) -> Iterator[tuple[StepTimer, int]]:
        """A stage with its slots filled, and the bytes that it takes, until the block ends."""
        self._progress(LoadProgress(PHASE, min(self._done, self._total), self._total))
        shape, began = self._shape, self._bench.taken()
        spec = self._spec(layers, first=first, last=last)
        types = (shape.layers * layers)[:layers]
        source = SyntheticSource(spec.model, types, shape.embedding, shape.output)
        engine = self._bench.build(spec, source)
        try:
            timer = StepTimer(spec, engine, self._sweep, self._tell)
            timer.fill(shape.rows[-1], self._entries, shape.chunks[-1])
            yield timer, max(0, self._bench.taken() - began - self._kv_written * layers)
        finally:
            engine.close()

    def _spec(self, layers: int, *, first: bool, last: bool) -> StageSpec:
        shape = self._shape
        needed = self._entries + shape.chunks[-1] + 1
        slots = shape.rows[-1]
        affordable = ARENA_BYTES // (slots * layers * self._position_bytes)
        return StageSpec(
            model=replace(shape.model, layers=layers, vocab=self._vocab if last else min(self._vocab, FEW_WORDS)),
            epoch=Epoch(HeadId(bytes(16)), 1),
            index=0 if first else 1,
            stages=1 if first and last else 2 if first or last else 3,
            layers=LayerRange(0, layers),
            slots=slots,
            context=max(needed, min(shape.context, affordable)),
            threads=self._bench.threads,
            max_step_tokens=max(shape.chunks[-1], slots),
        )

    @property
    def _vocab(self) -> int:
        model = self._shape.model
        return min(model.vocab, max(1, MATRIX_VALUES // model.hidden))

    @property
    def _position_bytes(self) -> int:
        return kv_position_bytes(self._shape.model)

    @property
    def _kv_written(self) -> int:
        """Bytes of KV entries that filling writes in each layer."""
        return self._shape.rows[-1] * self._entries * self._position_bytes


def kv_position_bytes(model: ModelFacts) -> int:
    """Bytes of one layer's keys and values at one position."""
    return _KV_BYTES * model.kv_heads * model.head_dim


class _Sweep:
    """Called: drives everything else out of the processor's cache."""

    def __init__(self) -> None:
        self._values = np.ones(SWEEP_BYTES // 8)

    def __call__(self) -> None:
        if not math.isfinite(self._values.sum()):
            raise LoadFailed("memory does not keep what was written to it")


def _per_layer(seconds: dict[int, float], step_s: float, layers: int) -> Curve:
    return _curve({size: max(0.0, one - step_s) / layers for size, one in seconds.items()})


def _curve(seconds: dict[int, float]) -> Curve:
    return Curve(tuple(sorted(seconds.items())))
