"""Measuring one device: stages of a few layers of a model's shape, loaded with made-up weights and stepped.

`docs/planning.md` says what is subtracted from what. Knows no RPC, no cache and no engine in particular.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from hyperlane.cluster.planner.curve import Curve
from hyperlane.cluster.profile.shape import DeviceProfile, ProfileShape
from hyperlane.cluster.profile.steps import StepTimer
from hyperlane.core import Epoch, HeadId, LayerRange, ModelFacts, StageSpec
from hyperlane.errors import LoadFailed
from hyperlane.models.synthetic import SyntheticSource
from hyperlane.models.weights import TensorSource
from hyperlane.stage.engine import Engine
from hyperlane.stage.orders import LoadProgress

FEW = 3
"""Layers of the second-smallest stage: with one of a single layer it tells layers from steps."""

BUDGET_S = 4.0
"""What timing the large stage may take, estimated from a small one: on slow devices it has fewer layers."""

SWEEP_BYTES = 1 << 26
"""Read before steps that must not find their weights in the processor's cache, as they would not in a whole stage."""

TELLING_BYTES = 32 << 20
"""What a process takes goes up and down by a few MiB: less than this says nothing of its weights."""

MATRIX_VALUES = 1 << 26
"""A larger embedding or projection is measured with fewer words, and counted up."""

ARENA_BYTES = 1 << 30
_KV_BYTES = 4  # keys and values, two bytes each
PHASE = "measuring"

Build = Callable[[StageSpec, TensorSource], Engine]


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured: how engines are built and with how many threads, and bytes that are taken on the device.

    `taken` counts what this process has there now; `room`: bytes that the samples may take; two layers are loaded even
    if they take more.
    """

    build: Build
    threads: int
    taken: Callable[[], int]
    room: int


def measure_device(shape: ProfileShape, bench: Bench, progress: Callable[[LoadProgress], None]) -> DeviceProfile:
    """Measure everything; takes seconds. What `progress` raises ends it, with nothing left behind.

    Raises:
        HyperlaneError: the engine cannot compute such layers; the message has why.

    """
    return _Measurement(shape, bench, progress).profile()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A stage of some layers, ready to be timed, and the bytes that it takes after its first steps."""

    timer: StepTimer
    taken: int


@dataclass(frozen=True, slots=True)
class _Curves:
    """Seconds of steps by rows, and by tokens of a chunk."""

    decode: dict[int, float]
    chunk: dict[int, float]


@dataclass(frozen=True, slots=True)
class _Ends:
    """Seconds of embedding by tokens, and of projecting by positions; bytes of a stage of one layer without either."""

    embed: dict[int, float]
    project: dict[int, float]
    middle_taken: int


class _Measurement:
    def __init__(self, shape: ProfileShape, bench: Bench, progress: Callable[[LoadProgress], None]) -> None:
        self._shape = shape
        self._bench = bench
        self._progress = progress
        self._done = 0
        self._entries = max(shape.kv_entries, shape.prompt_entries)

    def profile(self) -> DeviceProfile:
        process_bytes = self._bench.taken()
        with self._stage(1) as one:
            thin = one.timer.decode_s(1, self._shape.kv_entries)
            layers = self._affordable(one)
        few_count = min(FEW, layers)
        with self._stage(few_count) as few:
            few_s = few.timer.decode_s(1, self._shape.kv_entries)
            many = self._curves(few) if few_count == layers else None
            many_taken = few.taken
        if many is None:
            with self._stage(layers) as all_layers:
                many, many_taken = self._curves(all_layers), all_layers.taken
        step_s = max(0.0, thin - (few_s - thin) / (few_count - 1))
        layer = _Curves(
            {rows: max(0.0, s - step_s) / layers for rows, s in many.decode.items()},
            {tokens: max(0.0, s - step_s) / layers for tokens, s in many.chunk.items()},
        )
        ends = self._ends()
        weights = many_taken - ends.middle_taken
        return DeviceProfile(
            layer_decode=_curve(layer.decode),
            layer_prefill=_curve(layer.chunk),
            embed=_curve(ends.embed),
            project=_curve(ends.project),
            step_s=step_s,
            layer_bytes=weights // (layers - 1) if weights >= TELLING_BYTES else 0,
            process_bytes=process_bytes,
            measured_s=int(time.time()),
        )

    # --- what is timed ---------------------------------------------------------------------------------------

    def _affordable(self, one: _Loaded) -> int:
        """Layers of the large stage: as many as asked for, unless their memory or the time is too little."""
        shape = self._shape
        step_s, chunk_s = one.timer.decode_s(shape.rows[-1], shape.kv_entries), one.timer.chunk_s(*self._largest_chunk)
        again = 1 + self._entries / shape.chunks[-1]  # to fill the slots
        layer_s = (again + 2 * 5) * chunk_s + 2 * 5 * step_s
        room = self._bench.room // max(1, one.taken)
        return max(2, min(len(shape.layers), int(BUDGET_S / layer_s), room))

    @property
    def _largest_chunk(self) -> tuple[int, int]:
        return self._shape.chunks[-1], self._shape.prompt_entries

    def _curves(self, stage: _Loaded) -> _Curves:
        shape = self._shape
        decode = {rows: stage.timer.decode_s(rows, shape.kv_entries) for rows in self._steps(shape.rows)}
        chunk = {tokens: stage.timer.chunk_s(tokens, shape.prompt_entries) for tokens in self._steps(shape.chunks)}
        return _Curves(decode, chunk)

    def _ends(self) -> _Ends:
        """A layer with the embedding or the projection, less the layer.

        The least of several times: of differences of larger numbers noise would otherwise be what is left.
        """
        shape, cold = self._shape, _Sweep()
        with self._stage(1, before=cold, least=True) as middle:
            decode = {rows: middle.timer.decode_s(rows, shape.kv_entries) for rows in self._steps(shape.rows)}
            chunk, taken = middle.timer.chunk_s(*self._largest_chunk), middle.taken
        with self._stage(1, first=True, before=cold, least=True) as front:
            one, many = front.timer.decode_s(1, shape.kv_entries), front.timer.chunk_s(*self._largest_chunk)
        with self._stage(1, last=True, before=cold, least=True) as back:
            back_s = {
                rows: back.timer.decode_s(rows, shape.kv_entries, wanted=True) for rows in self._steps(shape.rows)
            }
        more = shape.model.vocab / self._vocab
        embed = {1: max(0.0, one - decode[1]), shape.chunks[-1]: max(0.0, many - chunk)}
        return _Ends(embed, {rows: more * max(0.0, s - decode[rows]) for rows, s in back_s.items()}, taken)

    def _steps(self, sizes: Sequence[int]) -> Iterator[int]:
        for size in sizes:
            self._progress(LoadProgress(PHASE, self._done, self._total))
            self._done += 1
            yield size

    @property
    def _total(self) -> int:
        return 3 * len(self._shape.rows) + len(self._shape.chunks)

    # --- stages ----------------------------------------------------------------------------------------------

    @contextmanager
    def _stage(
        self,
        layers: int,
        *,
        first: bool = False,
        last: bool = False,
        before: Callable[[], None] = lambda: None,
        least: bool = False,
    ) -> Iterator[_Loaded]:
        """A stage of the first sample layers, its slots filled, until the block ends."""
        self._progress(LoadProgress(PHASE, self._done, self._total))
        shape, began = self._shape, self._bench.taken()
        spec = self._spec(layers, first=first, last=last)
        types = (shape.layers * layers)[:layers]
        source = SyntheticSource(spec.model, types, shape.embedding, shape.output)
        engine = self._bench.build(spec, source)
        try:
            timer = StepTimer(spec, engine, before, min if least else statistics.median)
            timer.fill(shape.rows[-1], self._entries, shape.chunks[-1])
            yield _Loaded(timer, max(0, self._bench.taken() - began - self._kv_written * layers))
        finally:
            engine.close()

    def _spec(self, layers: int, *, first: bool, last: bool) -> StageSpec:
        shape = self._shape
        needed = self._entries + shape.chunks[-1] + 1
        slots = shape.rows[-1]
        affordable = ARENA_BYTES // (slots * layers * self._position_bytes)
        return StageSpec(
            model=replace(shape.model, layers=layers, vocab=self._vocab),
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


def _curve(seconds: dict[int, float]) -> Curve:
    return Curve(tuple(sorted(seconds.items())))
