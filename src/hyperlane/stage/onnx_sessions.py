"""Sessions of ONNX Runtime for engines and for packing weights: settings, providers, what it raises."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from hyperlane.core import StageSpec
from hyperlane.errors import LoadFailed
from hyperlane.stage.cuda import CudaError, CudaMemory
from hyperlane.stage.initialisers import read_packed
from hyperlane.stage.memory import HostMemory, Memory
from hyperlane.stage.numbers import TypedArray
from hyperlane.stage.onnx_engine import OnnxEngine
from hyperlane.stage.onnx_errors import ORT_ERRORS
from hyperlane.stage.options import EngineOptions
from hyperlane.stage.providers import Provider, provider_of
from hyperlane.stage.ready import Packed
from hyperlane.stage.weights import Arrays
from hyperlane.store.ready_store import UNFINISHED

RUNTIME = f"onnxruntime {ort.__version__}"

MANY_ROWS = "ORT_FPA_INTB_GEMM"
"""What ONNX Runtime reads when a session is made; there is no option for it."""

ERROR_SEVERITY = 3
"""ONNX Runtime's number for logging errors and worse."""


def start(spec: StageSpec, model: bytes, arrays: Mapping[str, TypedArray], options: EngineOptions) -> OnnxEngine:
    """An engine for a serialised graph whose external initialisers are `arrays`.

    Raises:
        LoadFailed: ONNX Runtime refused the graph, or the device has no room.

    """
    settings = _settings(spec.threads, options)
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    settings.add_external_initializers(list(arrays), values)
    row = provider_of(options.device)
    memory = _memory(row, options)
    if row.many_rows_kernels:
        os.putenv(MANY_ROWS, row.many_rows_kernels if spec.slots > 1 else "0")
    try:
        # A device has copied the weights; on the host those that were given are what is used.
        keep = (values, arrays) if isinstance(memory, HostMemory) else None
        return OnnxEngine(spec, _session(model, settings, _providers(row, options, memory)), options, memory, keep)
    except ORT_ERRORS as error:
        memory.close()
        raise LoadFailed(f"{options.device} has no room for layers {spec.layers}: {error}") from error
    except LoadFailed:
        memory.close()
        raise


def start_mapped(spec: StageSpec, model: bytes, root: Path, options: EngineOptions) -> OnnxEngine:
    """An engine for a serialised graph whose external initialisers lie in files below `root`, which are mapped.

    Raises:
        LoadFailed: ONNX Runtime refused the graph.

    """
    settings = _settings(spec.threads, options)
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(root))
    return OnnxEngine(spec, _session(model, settings), options, HostMemory())


def _memory(row: Provider, options: EngineOptions) -> Memory:
    """The memory of the device.

    Raises:
        LoadFailed: the device cannot be used.

    """
    if row.name != "cuda":
        return HostMemory()
    ort.set_default_logger_severity(ERROR_SEVERITY)  # it warns of every device that memory is bound to
    ort.preload_dlls()
    try:
        return CudaMemory(options.device_index)
    except CudaError as error:
        raise LoadFailed(f"device {options.device}:{options.device_index} cannot be used: {error}") from error


def _providers(row: Provider, options: EngineOptions, memory: Memory) -> list[str | tuple[str, dict[str, str]]]:
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
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._root))
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
        return ort.InferenceSession(model, settings, providers=list(providers))
    except ORT_ERRORS as error:
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
