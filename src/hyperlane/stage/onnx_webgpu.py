"""WebGPU through its plug-in for ONNX Runtime: which devices there are, and memory on one. Knows no engine.

A buffer of WebGPU is a handle, not an address: nothing can lie in the middle of one. So every slot has KV entries of
its own, and everything else stays on the host, from where the runtime takes it when it is bound.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper

from hyperlane.stage.memory import HostMemory
from hyperlane.stage.onnx_errors import ORT_ERRORS

NAME, DEVICE = "WebGpuExecutionProvider", "webgpu"
SOFTWARE = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"
"""The plug-in's variable: 1 lets it use a Vulkan driver that computes on the processor, for tests."""

_MISSING: tuple[type[Exception], ...] = (ImportError, *ORT_ERRORS)
_INT32 = int(TensorProto.INT32)
FEW = 16
_TRIED, _TRIED_HEAD = 64, 32
"""Tokens, and values of a head, that attention is tried with."""

_QUIET = 4
"""ONNX Runtime's number for logging nothing but what ends the process."""


@functools.cache
def devices() -> tuple[Any, ...]:
    """The plug-in's devices, as ONNX Runtime describes them; none where the plug-in cannot be loaded."""
    try:
        import onnxruntime_ep_webgpu as plugin

        ort.register_execution_provider_library(DEVICE, plugin.get_library_path())
    except _MISSING:
        return ()
    return tuple(device for device in ort.get_ep_devices() if device.ep_name == NAME)


def count() -> int:
    """How many devices can compute: those that the system lists, if a session can be made on the first."""
    return len(devices()) if _computes(np.dtype(np.float32)) else 0


def in_software() -> bool:
    """Whether the first device is the processor, which the plug-in lists only when told to (`SOFTWARE`)."""
    return bool(devices()) and devices()[0].device.type == ort.OrtHardwareDeviceType.CPU


def has_half() -> bool:
    """Whether the device computes in float16."""
    return _computes(np.dtype(np.float16))


def add_to(settings: ort.SessionOptions, index: int) -> None:
    """Let sessions of these settings compute on a device, what it has no operators for on the processor."""
    settings.add_provider_for_devices([devices()[index]], {})


@functools.cache
def _computes(dtype: np.dtype[Any]) -> bool:
    """Whether one addition succeeds: drivers tell what they lack only when they are used."""
    if not devices():
        return False
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    values = [helper.make_tensor_value_info(name, kind, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "probe", values[:1], values[1:])
    settings = ort.SessionOptions()
    settings.log_severity_level = _QUIET
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    add_to(settings, 0)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    try:
        session = ort.InferenceSession(model, settings, enable_fallback=0)
        session.run(None, {"x": np.ones(1, dtype)})
    except ORT_ERRORS:
        return False
    return True


@functools.cache
def attends_to_many(*, local: bool) -> bool:
    """Whether attention over many tokens at once is what it is over `FEW` and again `FEW`.

    On drivers in software ONNX Runtime's kernel for 32 tokens and more gives something else (seen with plug-in 0.4.0
    on SwiftShader). Tried with the operator itself, since which kernel it takes depends on the device; `local`: with
    a window, too.
    """
    every = range(FEW, _TRIED + 1, FEW)
    return all(
        np.allclose(_attended((_TRIED,), window), _attended(every, window), atol=1e-2)
        for window in ((-1, _TRIED // 2) if local else (-1,))
    )


def _attended(cuts: Sequence[int], window: int) -> npt.NDArray[Any]:
    """What attention gives for `_TRIED` random tokens that come in pieces, [tokens, values]."""
    kind = np.dtype(np.float16 if has_half() else np.float32)
    session, size = _attention(helper.np_dtype_to_tensor_dtype(kind), window), _TRIED_HEAD
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, _TRIED, size * heads)).astype(kind) for heads in (2, 1, 1))
    memory = WebGpuMemory()
    past = [memory.entries((1, 1, _TRIED + 1, size), kind) for _ in range(2)]
    found: list[npt.NDArray[Any]] = []
    for start, end in pairwise((0, *cuts)):
        binding = session.io_binding()
        for name, values in (("q", q), ("k", k), ("v", v)):
            binding.bind_cpu_input(name, np.ascontiguousarray(values[:, start:end]))
        binding.bind_cpu_input("lengths", np.array([end - 1], np.int32))
        binding.bind_cpu_input("total", np.array(end, np.int32))
        for entries, name in zip(past, ("key", "value"), strict=True):
            place = (DEVICE, 0, kind.type, entries.shape, entries.address(0))
            binding.bind_input(f"past_{name}", *place)
            binding.bind_output(f"present_{name}", *place)
        binding.bind_output("y", "cpu")
        session.run_with_iobinding(binding)
        found.append(binding.get_outputs()[2].numpy()[0])
    return np.concatenate(found)


def _attention(kind: int, window: int) -> ort.InferenceSession:
    size, entries = _TRIED_HEAD, [1, 1, _TRIED + 1, _TRIED_HEAD]
    shapes = {
        "q": [1, "n", 2 * size],
        "k": [1, "n", size],
        "v": [1, "n", size],
        "past_key": entries,
        "past_value": entries,
    }
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    inputs += [helper.make_tensor_value_info(*one) for one in (("lengths", _INT32, [1]), ("total", _INT32, []))]
    shapes = {"present_key": entries, "present_value": entries, "y": [1, "n", 2 * size]}
    outputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    node = helper.make_node(
        "GroupQueryAttention",
        [one.name for one in inputs],
        ["y", "present_key", "present_value"],
        domain="com.microsoft",
        num_heads=2,
        kv_num_heads=1,
        local_window_size=window,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    settings = ort.SessionOptions()
    settings.log_severity_level = _QUIET
    add_to(settings, 0)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return ort.InferenceSession(model, settings, enable_fallback=0)


@dataclass(frozen=True, slots=True, eq=False)
class WebGpuEntries:
    """Implements `Entries`, each slot in a buffer of its own."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    slots: Sequence[ort.OrtValue]
    provider: str = DEVICE

    @property
    def nbytes(self) -> int:
        """See `Entries`."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def address(self, slot: int) -> int:
        """See `Entries`: the handle of its buffer."""
        return int(self.slots[slot].data_ptr())

    def copy(self, source: int, destination: int, count: int) -> None:
        """See `Entries`; all entries are copied, the others are not in use."""
        if count and source != destination:
            ort.copy_tensors([self.slots[source]], [self.slots[destination]], None)


class WebGpuMemory(HostMemory):
    """Implements `Memory`: arrays are the host's, only KV entries lie on the device."""

    takes_when_bound = True

    def most_tokens(self, window: int) -> int:
        """See `Memory`."""
        return 0 if attends_to_many(local=window > 0) else FEW

    def entries(self, shape: Sequence[int], dtype: npt.DTypeLike) -> WebGpuEntries:
        """See `Memory`."""
        kind = np.dtype(dtype)
        one = (1, *shape[1:])
        slots = [ort.OrtValue.ortvalue_from_numpy(np.zeros(one, kind), DEVICE, 0) for _ in range(shape[0])]
        return WebGpuEntries(tuple(shape), kind, slots)
