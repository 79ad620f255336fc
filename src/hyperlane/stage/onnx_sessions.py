"""Sessions of ONNX Runtime for engines and for packing weights: settings, providers, what it raises."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from hyperlane.core import StageSpec, holds_twice
from hyperlane.errors import EngineFault, LoadFailed
from hyperlane.stage import onnx_webgpu
from hyperlane.stage.arena import kv_bytes
from hyperlane.stage.cuda import CudaError, CudaMemory
from hyperlane.stage.failures import let_go
from hyperlane.stage.initialisers import Graph, read_packed
from hyperlane.stage.later import Later
from hyperlane.stage.memory import HostMemory, Memory
from hyperlane.stage.onnx_engine import OnnxEngine
from hyperlane.stage.onnx_errors import ORT_ERRORS, is_out_of_memory
from hyperlane.stage.onnx_runs import Sessions
from hyperlane.stage.onnx_webgpu import WebGpuMemory
from hyperlane.stage.onnx_weights import FOLDER, Weights, copied, given, one_node
from hyperlane.stage.options import EngineOptions
from hyperlane.stage.providers import Provider, provider_of
from hyperlane.stage.ready import Packed
from hyperlane.stage.weights import Arrays
from hyperlane.store.ready_store import UNFINISHED

log = logging.getLogger(__name__)

RUNTIME = f"onnxruntime {ort.__version__}"

MANY_ROWS = "ep.cuda.fpa_intb_gemm"
"""CUDA's 4-bit kernels for a few rows: they hold the weights in another order, so it is all of a session or nothing."""

TRIED_ROWS = "ep.cuda.fpa_intb_profile_m"
"""Numbers of rows for which those kernels are timed when a session is made, to choose among them."""

FIVE_TO_EIGHT = ("ep.cuda.fpa_intb_gemv_wave_aware", "ep.cuda.fpa_intb_gemv_paired_k")
"""Their forms for 5 to 8 rows, a tenth to a quarter faster."""

ERROR_SEVERITY = 3
"""ONNX Runtime's number for logging errors and worse."""


def start(
    spec: StageSpec, graph: Graph, options: EngineOptions, *, apart: Graph | None = None, few_rows: int = 0
) -> OnnxEngine:
    """An engine for a graph. `apart`: the same with gate and up apart, its arrays views of the first one's.

    One row and prompts take less time with gate and up apart; several rows gain more by products of one size.

    `few_rows`: bytes of the weights that kernels for a few rows would hold in an order of their own, 0 where they do
    not suit those. Where a device has such kernels, and there is room for both orders, both are made; if there is no
    room for both, those for a few rows where there are several slots.

    Raises:
        LoadFailed: ONNX Runtime refused the graph, or the device has no room.
        MemoryError: this machine gives no more memory.

    """
    row = provider_of(options.device)
    if not few_rows:
        row = replace(row, many_rows_from=0)
    memory = _memory(row, options)
    making = _Making(spec, graph, options, few_rows, apart)
    try:
        return _engine(making, row, memory)
    except _FAILURES as error:
        let_go(error)
        memory.close()
        if isinstance(error, MemoryError) and type(memory) is HostMemory:
            raise  # this machine's; a device says so in the same words
        raise LoadFailed(_refusal(making, memory, error)) from error


def _engine(making: _Making, row: Provider, memory: Memory) -> OnnxEngine:
    with tempfile.TemporaryDirectory(prefix="hyperlane-") as folder:
        sessions, values = _sessions(making, row, memory, Path(folder))
    # Other devices have copied the weights; what the host or CUDA computes with is what was given.
    keep = (values, making.graph.arrays if type(memory) is HostMemory else None)
    _tell_room(memory, "sessions")
    engine = OnnxEngine(making.spec, sessions, making.options, memory, keep)
    _tell_room(memory, "entries and buffers")
    if memory.captures:
        engine.warm_up()
        _tell_room(memory, "first steps")
    return engine


def _refusal(making: _Making, memory: Memory, error: Exception) -> str:
    """What did not fit, or went wrong otherwise; the memory is free again by now."""
    spec, device = making.spec, f"{making.options.device}:{making.options.device_index}"
    weights, (free, total) = making.nbytes, memory.room()
    return (
        f"layers {spec.layers} could not be loaded on {device}: weights take {_mib(weights)}, {spec.slots} slots of "
        f"{spec.context} tokens {_mib(kv_bytes(spec))}, and computing takes some; without them {_mib(free)} of "
        f"{_mib(total)} are free. Use fewer slots or a shorter context (--slots, --context), fewer layers here, or end "
        f"what else uses the device. It said: {error}"
    )


def _tell_room(memory: Memory, done: str) -> None:
    """Log what is free on a device of its own memory, for who looks for where it goes."""
    if log.isEnabledFor(logging.DEBUG):
        log.debug("memory after %s: %d of %d bytes are free", done, *memory.room())


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f} MiB"


@dataclass(frozen=True, slots=True)
class _Making:
    """What sessions of one stage are made of; `apart`: see `start`."""

    spec: StageSpec
    graph: Graph
    options: EngineOptions
    few_rows: int
    apart: Graph | None

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return sum(array.nbytes for array in self.graph.arrays.values())

    def session(
        self, row: Provider, memory: Memory, weights: Weights, tried: Sequence[int] | None = None
    ) -> ort.InferenceSession:
        """A session; `tried`: with the kernels for many rows, timed for so many."""
        settings = _settings(self.spec.threads, self.options)
        weights.add_to(settings)
        if isinstance(memory, WebGpuMemory):
            onnx_webgpu.add_to(settings, self.options.device_index)
        if row.many_rows_from:
            settings.add_session_config_entry(MANY_ROWS, "0" if tried is None else "1")
            settings.add_session_config_entry(TRIED_ROWS, ",".join(map(str, tried or [1])))
            for name in FIVE_TO_EIGHT:
                settings.add_session_config_entry(name, "1")
        return _session(weights.model, settings, _providers(row, self.options, memory))


def _sessions(making: _Making, row: Provider, memory: Memory, folder: Path) -> tuple[Sessions, object]:
    """The sessions of a stage, and what must live as long as they."""
    spec, weights = making.spec, making.nbytes
    free, total = memory.room()
    several = bool(row.many_rows_from) and spec.slots > 1 and making.options.capture
    needed = weights + making.few_rows + kv_bytes(spec)
    both = spec.slots >= row.many_rows_from and holds_twice(free, total, needed)
    if several and not both:
        # Those kernels take the weights in another order: ours would be held for nothing.
        values, least = given(making.graph), min(row.least_rows, spec.slots)
        tried = _tried_rows(spec, least, all_prompts=True)
        return Sessions(making.session(row, memory, values, tried), least=least), None
    if not isinstance(memory, CudaMemory):
        values = given(making.graph)
        return Sessions(making.session(row, memory, values)), values
    together, apart = copied(making.graph, making.apart or making.graph, memory, folder)
    _tell_room(memory, "weights")
    if not several:
        return Sessions(making.session(row, memory, apart)), apart
    with ThreadPoolExecutor(1, "session") as pool:
        many = pool.submit(making.session, row, memory, together, _tried_rows(spec, row.many_rows_from))
        usual = making.session(row, memory, apart)
        return Sessions(usual, many.result(), row.many_rows_from), (together, apart)


def _tried_rows(spec: StageSpec, least: int, *, all_prompts: bool = False) -> list[int]:
    """The row counts of decode steps, which are powers of two from `least` on; and of prompts, if they are run so."""
    most = max(2 * spec.slots - 1, spec.max_step_tokens if all_prompts else 0)
    return [count for count in (1 << bit for bit in range(16)) if least <= count <= most]


@dataclass(frozen=True, slots=True)
class OtherGraphs:
    """What makes the graphs of a stage for runs of another kind; see `Sessions`. None where there is none."""

    singles: Callable[[], bytes] | None = None
    beside: Callable[[], bytes] | None = None


def start_mapped(
    spec: StageSpec, model: bytes, root: Path, options: EngineOptions, others: OtherGraphs = OtherGraphs()
) -> OnnxEngine:
    """An engine for a serialised graph whose external initialisers lie in files below `root`, which are mapped.

    The sessions of `others` map the same pages.

    Raises:
        LoadFailed: ONNX Runtime refused the graph.
        MemoryError: this machine gives no more memory.

    """

    def session(model: bytes) -> ort.InferenceSession:
        settings = _settings(spec.threads, options)
        settings.add_session_config_entry(FOLDER, str(root))
        return _session(model, settings)

    def later(graph: Callable[[], bytes] | None) -> Later[ort.InferenceSession] | None:
        return Later(lambda: session(graph())) if graph is not None else None

    sessions = Sessions(session(model), singles=later(others.singles), beside=later(others.beside))
    return OnnxEngine(spec, sessions, options, HostMemory())


def _memory(row: Provider, options: EngineOptions) -> Memory:
    """The memory of the device.

    Raises:
        LoadFailed: the device cannot be used.

    """
    if row.name == "webgpu":
        return WebGpuMemory()
    if row.name != "cuda":
        return HostMemory()
    ort.set_default_logger_severity(ERROR_SEVERITY)  # it warns of every device that memory is bound to
    ort.preload_dlls()
    try:
        return CudaMemory(options.device_index)
    except CudaError as error:
        raise LoadFailed(f"device {options.device}:{options.device_index} cannot be used: {error}") from error


def prepare(options: EngineOptions) -> None:
    """Load what a device's first session waits for; failures are left to that session, which says what they mean.

    ONNX Runtime's library for CUDA and NVIDIA's own take a second and more, some of it at the first product.
    """
    row = provider_of(options.device)
    if row.name != "cuda":
        return
    x = np.zeros((64, 64), np.float16)
    with contextlib.suppress(LoadFailed, *ORT_ERRORS):
        ort.preload_dlls()
        device = [(row.ort_name, {"device_id": str(options.device_index)})]
        _session(one_node("MatMul", "x", "x", kind=onnx.TensorProto.FLOAT16), _settings(1, options), device).run(
            None, {"x": x}
        )


def _providers(row: Provider, options: EngineOptions, memory: Memory) -> list[str | tuple[str, dict[str, str]]]:
    if isinstance(memory, WebGpuMemory):
        return []  # the settings name the device
    if not isinstance(memory, CudaMemory):
        return [row.ort_name]
    settings = {
        "device_id": str(options.device_index),
        "user_compute_stream": str(memory.stream),
        "enable_cuda_graph": "1" if options.capture else "0",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",  # a packed link's bytes are sums of whole numbers of up to 22 bits
    }
    return [(row.ort_name, settings), "CPUExecutionProvider"]


_FAILURES: tuple[type[Exception], ...] = (*ORT_ERRORS, CudaError, EngineFault, LoadFailed, MemoryError)


class OnnxPacker:
    """Implements `Packer`: packs weights by letting ONNX Runtime save a session with what it made of them."""

    def __init__(self, root: Path) -> None:
        """Work below `root`, where ready files are."""
        self._root = root

    def pack(self, model: bytes, arrays: Arrays) -> Mapping[str, Packed]:
        """See `Packer`."""
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=self._root, ignore_cleanup_errors=True) as name:
            settings = _settings(1, EngineOptions())
            saved = Path(name) / "packed.onnx"
            settings.optimized_model_filepath = str(saved)
            for key, value in _SAVE_PACKED.items():
                settings.add_session_config_entry(key, value)
            values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
            settings.add_external_initializers(list(arrays), values)
            _session(model, settings)
            return _read_packed(saved)

    def multiply(self, model: bytes, feeds: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """See `Packer`."""
        settings = _settings(1, EngineOptions())
        settings.add_session_config_entry(FOLDER, str(self._root))
        result: npt.NDArray[np.float32] = _session(model, settings).run(None, dict(feeds))[0]
        return result


_PACKED_DATA = "packed.bin"
_SAVE_PACKED = {
    "session.save_external_prepacked_constant_initializers": "1",
    "session.optimized_model_external_initializers_file_name": _PACKED_DATA,
    "session.optimized_model_external_initializers_min_size_in_bytes": "0",
}


def _read_packed(saved: Path) -> Mapping[str, Packed]:
    # Mapped, so that only what is changed takes memory; the file may lose its name meanwhile.
    data = np.memmap(saved.with_name(_PACKED_DATA), np.uint8, mode="c")
    found = {}
    for tensor in onnx.load(saved, load_external_data=False).graph.initializer:
        key, spans = read_packed(tensor)
        if key:
            found[tensor.name] = Packed(key, tuple(data[span.offset : span.offset + span.length] for span in spans))
    return found


def _session(
    model: bytes,
    settings: ort.SessionOptions,
    providers: Sequence[str | tuple[str, dict[str, str]]] = ("CPUExecutionProvider",),
) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(model, settings, providers=list(providers) or None, enable_fallback=0)
    except ORT_ERRORS as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise LoadFailed(f"ONNX Runtime refused a graph: {error}") from error


def available_providers() -> list[str]:
    """ONNX Runtime's names of the providers that its build has."""
    return list(ort.get_available_providers())


def _settings(threads: int, options: EngineOptions) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    # The graph is built of fused operators; rewriting it could make the ends of a stage differ from its middle.
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = ERROR_SEVERITY
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    return settings
