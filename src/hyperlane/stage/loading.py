"""From a stage's spec and a source of tensors to an engine that is ready to step."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from onnx import TensorProto

from hyperlane.core import StageSpec
from hyperlane.graph.candidates import parts_of
from hyperlane.graph.decoder import StageShape
from hyperlane.graph.families import FUSED_GATES, build_stage
from hyperlane.graph.forms import Forms, MatrixForm
from hyperlane.graph.numbers import Numbers
from hyperlane.models.layout import (
    EMBEDDING_UNIT,
    UnitLayout,
    embedding_layout,
    layer_layout,
    link_layouts,
    output_layout,
)
from hyperlane.models.weights import ExpectingSource, OneAtATime, TensorSource
from hyperlane.stage.arena import positions
from hyperlane.stage.engine import Engine
from hyperlane.stage.halves import gates_apart
from hyperlane.stage.initialisers import Graph, given, mapped
from hyperlane.stage.link_gains import LinkGains, link_gains, vectors_of
from hyperlane.stage.numbers import TypedArray, in_types, numbers_of
from hyperlane.stage.options import Arithmetic, BlockOffsets, EngineOptions, KvElement
from hyperlane.stage.orders import LoadProgress
from hyperlane.stage.providers import check_runtime, provider_of
from hyperlane.stage.ready import UnitPacker, forms_text, mapped_arrays, read_forms, weights_of
from hyperlane.stage.residency import release_after_load
from hyperlane.stage.weights import UnitWeights, few_rows_bytes, read_embedding, read_unit
from hyperlane.store.ready_file import NewTensor, ReadyUnit
from hyperlane.store.ready_store import Contents, ReadyStore, unit_key

log = logging.getLogger(__name__)

CONVERTING = "converting"
STARTING = "starting"
"""Phases of a load; the unit of CONVERTING is a layer, the embedding or the projection."""

CHECKED = 2
"""Units at the beginning of a stage whose packed weights are checked; a runtime uses all of them or none."""

ARRAYS = "arrays 2"
"""What tells converted arrays from packed ones; another number when a conversion gives something else."""

ReportProgress = Callable[[LoadProgress], None]
ReadLayout = Callable[["Assembly", UnitLayout], UnitWeights]

_INT8, _F32 = 4, 1


def load_engine(
    spec: StageSpec,
    source: TensorSource,
    store: ReadyStore | None = None,
    options: EngineOptions | None = None,
    *,
    progress: ReportProgress = lambda report: None,
) -> Engine:
    """Build the engine of a stage.

    Args:
        spec: the stage.
        source: where its tensors come from; not needed any more afterwards, and not read where the store has them.
        store: where weights are kept in the engine's form; without one nothing is kept.
        options: how it computes; the fast path by default.
        progress: told how far it is; what it raises ends the load, with nothing left behind.

    Raises:
        MalformedModel, UnsupportedModel, TransferError: as the source and the conversion do.
        RuntimeMissing: no ONNX Runtime is installed.
        LoadFailed: the engine refused the graph, or the store cannot be written.

    """
    check_runtime()
    order = Assembly(spec, source, usable(options or EngineOptions()), progress)
    if not provider_of(order.options.device).packs:
        return _load_arrays(order, store)
    if order.options.arithmetic is Arithmetic.F32:
        return _load_arrays(order, None)
    if store is not None:
        return _load_ready(order, store, lasting=True)
    with tempfile.TemporaryDirectory(prefix="hyperlane-", ignore_cleanup_errors=True) as name:
        # What is mapped stays until the engine lets go of it, also where its files have no names any more. A second
        # session finds nothing then.
        return _load_ready(order, ReadyStore(Path(name)), lasting=False)


def usable(options: EngineOptions) -> EngineOptions:
    """The options with the form of weights that the device needs."""
    needed = provider_of(options.device).offsets
    return options if needed is None else replace(options, offsets=needed)


def units(spec: StageSpec) -> tuple[UnitLayout, ...]:
    """What a stage is made of, in the order of its computation."""
    layers = [layer_layout(spec.model, index) for index in range(spec.layers.first, spec.layers.last)]
    first = [embedding_layout(spec.model)] if spec.is_first else []
    last = [output_layout(spec.model)] if spec.is_last else []
    return (*first, *layers, *last)


@dataclass(frozen=True, slots=True)
class Assembly:
    """What a stage is made of: the weights of its units, and the graph that uses them."""

    spec: StageSpec
    source: TensorSource
    options: EngineOptions
    progress: ReportProgress

    def read(self, layout: UnitLayout) -> UnitWeights:
        """Read and convert the weights of a unit."""
        if layout.name == EMBEDDING_UNIT:
            return read_embedding(self.source, layout, self.options.offsets)
        return read_unit(self.source, layout, self.options.offsets)

    def expect(self, layouts: Iterable[UnitLayout]) -> None:
        """Tell a source that fetches what will be read of it."""
        names = list(dict.fromkeys(name for layout in layouts for name in layout.tensors))
        if names and isinstance(self.source, ExpectingSource):
            self.source.expect(names)

    def counted(self) -> Iterator[UnitLayout]:
        """The stage's units, each reported before it is taken on."""
        wanted = units(self.spec)
        for done, layout in enumerate(wanted):
            self.progress(LoadProgress(CONVERTING, done, len(wanted)))
            yield layout
        self.progress(LoadProgress(STARTING))

    def read_all(self, get: ReadLayout) -> Iterator[UnitWeights]:
        """All units in their order, got side by side, each reported when it is done."""
        alone = replace(self, source=OneAtATime(self.source))
        wanted = units(self.spec)
        with ThreadPoolExecutor(max(1, self.spec.threads), "convert") as pool:
            begun = [pool.submit(get, alone, layout) for layout in wanted]
            try:
                for done, unit in enumerate(begun):
                    self.progress(LoadProgress(CONVERTING, done, len(wanted)))
                    yield unit.result()
            finally:
                for unit in begun:
                    unit.cancel()
        self.progress(LoadProgress(STARTING))

    def read_typed(self, layout: UnitLayout) -> UnitWeights:
        """As `read`, every array in the type that its operator takes it in."""
        unit = self.read(layout)
        return replace(unit, arrays=in_types(unit.arrays, self.numbers))

    def read_gains(self, read: ReadLayout) -> LinkGains:
        """What the links' values are multiplied by."""
        return link_gains(
            self.spec, lambda layout: [np.asarray(one, np.float32) for one in read(self, layout).arrays.values()]
        )

    def graph(
        self,
        forms: Forms,
        initialisers: Sequence[TensorProto],
        gains: LinkGains,
        *,
        singles: int = 0,
        beside: bool = False,
    ) -> bytes:
        """The stage's graph; `singles`, `beside`: one for runs of that kind, see `graph.attention`."""
        shape = StageShape(
            facts=self.spec.model,
            layers=self.spec.layers,
            embeds=self.spec.is_first,
            projects=self.spec.is_last,
            positions=positions(self.spec),
            forms=forms,
            accuracy=self.accuracy,
            half_cache=self.options.kv is KvElement.F16 and not self.options.single,
            half=provider_of(self.options.device).half and not self.options.single,
            precision_in=self.spec.precision_in,
            precision_out=self.spec.precision_out,
            gains_in=gains.received,
            gains_out=gains.sent,
            fused_gate=self._fused_gate,
            top_parts=parts_of(self.spec.model.vocab) if provider_of(self.options.device).searches_parts else 1,
            singles=singles,
            beside=beside,
        )
        return build_stage(shape, initialisers)

    @property
    def _fused_gate(self) -> bool:
        return provider_of(self.options.device).fused_gate and self.spec.model.family in FUSED_GATES

    @property
    def numbers(self) -> Numbers:
        """Types of the values."""
        return numbers_of(self.options, self.spec.model.family)

    @property
    def accuracy(self) -> int:
        """MatMulNBits' accuracy_level."""
        row = provider_of(self.options.device)
        return _INT8 if self.options.arithmetic is Arithmetic.INT8 and not row.exact else _F32


def _load_ready(order: Assembly, store: ReadyStore, *, lasting: bool) -> Engine:
    """Through the store: every unit is mapped, after it was packed if it was not there. `lasting`: and stays there."""
    from hyperlane.stage import onnx_sessions  # only now: importing it takes a runtime, and half a second

    packer = UnitPacker(onnx_sessions.OnnxPacker(store.root), order.accuracy)
    ready = _ready_units(order, store, packer)
    if not all(packer.check(unit) for unit in (*ready[:CHECKED], ready[-1])):
        log.warning("%s does not use the weights as they were packed; offsets become columns", onnx_sessions.RUNTIME)
        order = replace(order, options=replace(order.options, offsets=BlockOffsets.COLUMNS))
        ready = _ready_units(order, store, packer)
    forms = {path: parts for unit in ready for path, parts in read_forms(unit).items()}
    initialisers = [mapped(unit, tensor) for unit in ready for tensor in weights_of(unit)]
    gains = link_gains(order.spec, lambda layout: vectors_of(_ready_unit(order, store, packer, layout)))
    make = partial(order.graph, forms, initialisers, gains)
    row, others = provider_of(order.options.device), onnx_sessions.OtherGraphs()
    if lasting and len(order.spec.layers):
        others = onnx_sessions.OtherGraphs(
            partial(make, singles=row.singles) if row.singles > 1 else None,
            partial(make, beside=True) if row.beside else None,
        )
    engine = onnx_sessions.start_mapped(order.spec, make(), store.root, order.options, others)
    release_after_load(store.root)
    return engine


def _ready_units(order: Assembly, store: ReadyStore, packer: UnitPacker) -> list[ReadyUnit]:
    order.expect(layout for layout in _all_layouts(order.spec) if not store.has(_key(order, packer, layout)))
    return [_ready_unit(order, store, packer, layout) for layout in order.counted()]


def _ready_unit(order: Assembly, store: ReadyStore, packer: UnitPacker, layout: UnitLayout) -> ReadyUnit:
    model = order.spec.model
    about = {"model": model.fingerprint, "name": model.name, "unit": layout.name}
    return store.get_or_make(_key(order, packer, layout), partial(_make_unit, order, packer, layout), about)


def _all_layouts(spec: StageSpec) -> list[UnitLayout]:
    return [*units(spec), *(layout for layout in link_layouts(spec) if layout is not None)]


def _key(order: Assembly, packer: UnitPacker, layout: UnitLayout) -> str:
    from hyperlane.stage import onnx_sessions

    return unit_key(
        {
            "model": order.spec.model.fingerprint,
            "unit": repr(layout),
            "offsets": order.options.offsets,
            "arithmetic": order.options.arithmetic,
            "runtime": onnx_sessions.RUNTIME,
            "machine": platform.machine(),
            "packing": packer.mark,
        }
    )


def _make_unit(order: Assembly, packer: UnitPacker, layout: UnitLayout) -> Contents:
    return packer.make(order.read(layout))


def _load_arrays(order: Assembly, store: ReadyStore | None) -> Engine:
    """With all weights as arrays; those that were converted before are mapped."""
    from hyperlane.stage import onnx_sessions

    layouts = _all_layouts(order.spec)
    order.expect(layout for layout in layouts if store is None or not store.has(_array_key(order, layout)))
    arrays: dict[str, TypedArray] = {}
    forms: dict[str, tuple[MatrixForm, ...]] = {}
    for unit in order.read_all(Assembly.read_typed if store is None else partial(_kept, store)):
        arrays |= unit.arrays
        forms |= unit.forms
    plain = Assembly.read if store is None else partial(_kept, store, read=Assembly.read)
    gains = order.read_gains(plain)

    def graph(arrays: Mapping[str, TypedArray], forms: Forms) -> Graph:
        model = order.graph(forms, [given(name, array) for name, array in arrays.items()], gains)
        return Graph(model, arrays)

    few_rows = few_rows_bytes(arrays, forms)
    apart = graph(*gates_apart(arrays, forms)) if provider_of(order.options.device).many_rows_from else None
    return onnx_sessions.start(order.spec, graph(arrays, forms), order.options, apart=apart, few_rows=few_rows)


def _kept(
    store: ReadyStore, order: Assembly, layout: UnitLayout, read: ReadLayout = Assembly.read_typed
) -> UnitWeights:
    """A unit from the store, converted before if it was not there."""
    about = {"model": order.spec.model.fingerprint, "name": order.spec.model.name, "unit": layout.name}

    def make() -> Contents:
        unit = read(order, layout)
        return [NewTensor(name, array) for name, array in unit.arrays.items()], forms_text(unit.forms)

    return mapped_arrays(store.get_or_make(_array_key(order, layout), make, about))


def _array_key(order: Assembly, layout: UnitLayout) -> str:
    return unit_key(
        {
            "model": order.spec.model.fingerprint,
            "unit": repr(layout),
            "offsets": order.options.offsets,
            "types": repr(order.numbers),
            "form": ARRAYS,
        }
    )
