"""From a stage's spec and a source of tensors to an engine that is ready to step."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from hyperlane.core import StageSpec
from hyperlane.graph.decoder import StageShape
from hyperlane.graph.families import build_stage
from hyperlane.graph.forms import Forms
from hyperlane.models.layout import UnitLayout, embedding_layout, layer_layout, output_layout
from hyperlane.models.weights import TensorSource
from hyperlane.stage.arena import positions
from hyperlane.stage.engine import Engine
from hyperlane.stage.initialisers import given, mapped
from hyperlane.stage.options import Arithmetic, BlockOffsets, EngineOptions, KvElement
from hyperlane.stage.orders import LoadProgress
from hyperlane.stage.providers import check_runtime
from hyperlane.stage.ready import UnitPacker, read_forms, weights_of
from hyperlane.stage.weights import Array, UnitWeights, read_embedding, read_unit
from hyperlane.store.ready_file import ReadyUnit
from hyperlane.store.ready_store import Contents, ReadyStore, unit_key

log = logging.getLogger(__name__)

CONVERTING = "converting"
STARTING = "starting"
"""Phases of a load; the unit of CONVERTING is a layer, the embedding or the projection."""

CHECKED = 2
"""Units at the beginning of a stage whose packed weights are checked; a runtime uses all of them or none."""

ReportProgress = Callable[[LoadProgress], None]

_INT8, _F32 = 4, 1


def load_engine(
    spec: StageSpec,
    source: TensorSource,
    store: ReadyStore | None = None,
    options: EngineOptions | None = None,
    *,
    progress: CHECKED = 2
"""Units at the beginning of a stage whose packed weights are checked; a runtime uses all of them or none."""

ReportProgress = lambda report: None,
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
    options = options or EngineOptions()
    if options.arithmetic is Arithmetic.F32:
        return _load_arrays(spec, source, options, progress)
    if store is not None:
        return _load_ready(spec, source, store, options, progress)
    with tempfile.TemporaryDirectory(prefix="hyperlane-", ignore_cleanup_errors=True) as name:
        # What is mapped stays until the engine lets go of it, also where its files have no names any more.
        return _load_ready(spec, source, ReadyStore(Path(name)), options, progress)


def units(spec: StageSpec) -> tuple[UnitLayout, ...]:
    """What a stage is made of, in the order of its computation."""
    layers = [layer_layout(spec.model, index) for index in range(spec.layers.first, spec.layers.last)]
    first = [embedding_layout()] if spec.is_first else []
    last = [output_layout(spec.model)] if spec.is_last else []
    return (*first, *layers, *last)


def _load_ready(
    spec: StageSpec, source: TensorSource, store: ReadyStore, options: EngineOptions, progress: ReportProgress
) -> Engine:
    """Through the store: every unit is mapped, after it was packed if it was not there."""
    from hyperlane.stage import onnx_engine  # only now: importing it takes a runtime, and half a second

    packer = UnitPacker(onnx_engine.OnnxPacker(store.root), _accuracy(options))
    ready = _ready_units(spec, source, store, packer, options, progress)
    if not all(packer.check(unit) for unit in (*ready[:CHECKED], ready[-1])):
        log.warning("%s does not use the weights as they were packed; offsets become columns", onnx_engine.RUNTIME)
        options = replace(options, offsets=BlockOffsets.COLUMNS)
        ready = _ready_units(spec, source, store, packer, options, progress)
    progress(LoadProgress(STARTING))
    forms = {path: parts for unit in ready for path, parts in read_forms(unit).items()}
    initialisers = [mapped(unit, tensor) for unit in ready for tensor in weights_of(unit)]
    model = build_stage(_shape(spec, forms, options), initialisers)
    return onnx_engine.start_mapped(spec, model, store.root, options)


def _ready_units(
    spec: StageSpec,
    source: TensorSource,
    store: ReadyStore,
    packer: UnitPacker,
    options: EngineOptions,
    progress: ReportProgress,
) -> list[ReadyUnit]:
    from hyperlane.stage import onnx_engine

    ready = []
    wanted = units(spec)
    for done, layout in enumerate(wanted):
        progress(LoadProgress(CONVERTING, done, len(wanted)))
        key = unit_key(
            {
                "model": spec.model.fingerprint,
                "unit": layout.name,
                "offsets": options.offsets,
                "arithmetic": options.arithmetic,
                "runtime": onnx_engine.RUNTIME,
                "machine": platform.machine(),
                "packing": packer.mark,
            }
        )
        make = partial(_make_unit, packer, source, layout, options)
        ready.append(store.get_or_make(key, make))
    return ready


def _load_arrays(spec: StageSpec, source: TensorSource, options: EngineOptions, progress: ReportProgress) -> Engine:
    """With all weights in this process's memory, as they were converted."""
    from hyperlane.stage import onnx_engine

    wanted = units(spec)
    weights: list[UnitWeights] = []
    for done, layout in enumerate(wanted):
        progress(LoadProgress(CONVERTING, done, len(wanted)))
        weights.append(_read(source, layout, options))
    progress(LoadProgress(STARTING))
    arrays: dict[str, Array] = {name: array for unit in weights for name, array in unit.arrays.items()}
    forms = {path: parts for unit in weights for path, parts in unit.forms.items()}
    initialisers = [given(name, array) for name, array in arrays.items()]
    return onnx_engine.start(spec, build_stage(_shape(spec, forms, options), initialisers), arrays, options)


def _make_unit(packer: UnitPacker, source: TensorSource, layout: UnitLayout, options: EngineOptions) -> Contents:
    return packer.make(_read(source, layout, options))


def _read(source: TensorSource, layout: UnitLayout, options: EngineOptions) -> UnitWeights:
    read = read_embedding if layout == embedding_layout() else read_unit
    return read(source, layout, options.offsets)


def _shape(spec: StageSpec, forms: Forms, options: EngineOptions) -> StageShape:
    return StageShape(
        facts=spec.model,
        layers=spec.layers,
        embeds=spec.is_first,
        projects=spec.is_last,
        positions=positions(spec),
        forms=forms,
        accuracy=_accuracy(options),
        half_cache=options.kv is KvElement.F16,
    )


def _accuracy(options: EngineOptions) -> int:
    return _INT8 if options.arithmetic is Arithmetic.INT8 else _F32
