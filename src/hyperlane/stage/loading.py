"""From a stage's spec and a source of tensors to an engine that is ready to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx import TensorProto, helper

from hyperlane.core import StageSpec
from hyperlane.graph.decoder import StageShape
from hyperlane.graph.families import build_stage
from hyperlane.models.layout import UnitLayout, embedding_layout, layer_layout, output_layout
from hyperlane.models.weights import TensorSource
from hyperlane.stage.arena import positions
from hyperlane.stage.engine import Engine
from hyperlane.stage.options import Arithmetic, EngineOptions, KvElement
from hyperlane.stage.orders import LoadProgress
from hyperlane.stage.providers import check_runtime
from hyperlane.stage.weights import Array, UnitWeights, read_embedding, read_unit

CONVERTING = "converting"
STARTING = "starting the engine"
"""Phases of a load."""

_INT8, _F32 = 4, 1


def units(spec: StageSpec) -> tuple[UnitLayout, ...]:
    """What a stage is made of, in the order of its computation."""
    layers = [layer_layout(spec.model, index) for index in range(spec.layers.first, spec.layers.last)]
    first = [embedding_layout()] if spec.is_first else []
    last = [output_layout(spec.model)] if spec.is_last else []
    return (*first, *layers, *last)


def stage_shape(spec: StageSpec, weights: Sequence[UnitWeights], options: EngineOptions) -> StageShape:
    """What the stage's graph is built for."""
    return StageShape(
        facts=spec.model,
        layers=spec.layers,
        embeds=spec.is_first,
        projects=spec.is_last,
        positions=positions(spec),
        forms={path: forms for unit in weights for path, forms in unit.forms.items()},
        accuracy=_INT8 if options.arithmetic is Arithmetic.INT8 else _F32,
        half_cache=options.kv is KvElement.F16,
    )


def placeholder(name: str, array: Array) -> TensorProto:
    """An initialiser whose values the session is given apart."""
    tensor = TensorProto(
        name=name,
        dims=array.shape,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    tensor.external_data.add(key="location", value="given apart")
    return tensor


def read_units(
    spec: StageSpec, source: TensorSource, options: EngineOptions, progress: Callable[[LoadProgress], None]
) -> tuple[UnitWeights, ...]:
    """Read and convert all of a stage's weights."""
    wanted = units(spec)
    made = []
    for done, layout in enumerate(wanted):
        progress(LoadProgress(CONVERTING, done, len(wanted)))
        made.append(read_layout(source, layout, options))
    progress(LoadProgress(CONVERTING, len(wanted), len(wanted)))
    return tuple(made)


def read_layout(source: TensorSource, layout: UnitLayout, options: EngineOptions) -> UnitWeights:
    """Read and convert the weights of one unit."""
    read = read_embedding if layout == embedding_layout() else read_unit
    return read(source, layout, options.offsets)


def load_engine(
    spec: StageSpec,
    source: TensorSource,
    options: EngineOptions | None = None,
    *,
    progress: Callable[[LoadProgress], None] = lambda report: None,
) -> Engine:
    """Build the engine of a stage.

    Args:
        spec: the stage.
        source: where its tensors come from; not needed any more afterwards.
        options: how it computes; the fast path by default.
        progress: told how far it is; what it raises ends the load, with nothing left behind.

    Raises:
        MalformedModel, UnsupportedModel, TransferError: as the source and the conversion do.
        RuntimeMissing: no ONNX Runtime is installed.
        LoadFailed: ONNX Runtime refused the graph.

    """
    check_runtime()
    from hyperlane.stage import onnx_engine  # only now: importing it takes a runtime, and a second of time

    options = options or EngineOptions()
    weights = read_units(spec, source, options, progress)
    arrays = {name: array for unit in weights for name, array in unit.arrays.items()}
    placeholders = [placeholder(name, array) for name, array in arrays.items()]
    model = build_stage(stage_shape(spec, weights, options), placeholders)
    progress(LoadProgress(STARTING))
    return onnx_engine.start(spec, model, arrays, options)
